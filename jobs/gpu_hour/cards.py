"""What known cards can do at most, by the name that torch gives them: dense matrix products, from their data sheets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """TFLOPS; half: bfloat16, or float16 where a card has no bfloat16; single: float32 without TF32."""

    half: float
    single: float


CARDS = (  # the first whose words are all in the name counts
    ("B200", Card(2250, 75)),
    ("H200", Card(989, 67)),
    ("H100 PCIe", Card(756, 51)),
    ("H100 NVL", Card(835, 60)),
    ("H100", Card(989, 67)),
    ("A100", Card(312, 19.5)),
    ("L40S", Card(362, 91.6)),
    ("L40", Card(181, 90.5)),
    ("L4", Card(121, 30.3)),
    ("A10G", Card(70, 35)),
    ("A10", Card(125, 31.2)),
    ("V100", Card(125, 15.7)),
    ("T4", Card(65, 8.1)),
    ("4090", Card(165, 82.6)),
    ("3090", Card(71, 35.6)),
)


def card(name: str) -> Card | None:
    """None for one that is not known."""
    words = set(name.replace("-", " ").split())
    return next((found for key, found in CARDS if set(key.split()) <= words), None)


def share(name: str, tflops: float, dtype: str) -> float | None:
    """Of the card's peak, by the name of the precision; None where the card is not known."""
    found = card(name)
    return None if found is None else tflops / (found.single if dtype == "float32" else found.half)
