"""What known cards can do at most in the precisions that are measured here."""

from __future__ import annotations

from dataclasses import dataclass

from dav_ray.runtime.cluster.peaks import peak


@dataclass(frozen=True)
class Card:
    """TFLOPS; half: bfloat16, or float16 where a card has no bfloat16; single: float32 without TF32."""

    half: float
    single: float


def card(name: str) -> Card | None:
    """By the name that torch gives it. None for one that is not known."""
    found = peak(name)
    return None if found is None else Card(found.bfloat16 or found.float16, found.float32)


def share(name: str, tflops: float, dtype: str) -> float | None:
    """Of the card's peak, by the name of the precision; None where the card is not known."""
    found = card(name)
    return None if found is None else tflops / (found.single if dtype == "float32" else found.half)
