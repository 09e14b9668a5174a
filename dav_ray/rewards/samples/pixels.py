"""What a reward wants to be shown: images as float32 in [0, 1], or as pixels, uint8, of which a quarter is to be sent.

A class says `wants = "uint8"` if it rounds to 8 bits anyway. Tokens are as they are for all rewards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Wants = Literal["uint8", "float32"]
WANTS: tuple[Wants, ...] = ("uint8", "float32")


def wants_of(reward: Any) -> Wants:
    """ValueError for what no reward can be shown."""
    said = getattr(reward, "wants", "float32")
    if said not in WANTS:
        raise ValueError(f"wants = {said!r}; allowed: {', '.join(WANTS)}")
    if said == "uint8" and getattr(reward, "differentiable", False):
        raise ValueError("wants = 'uint8' and differentiable = True: pixels have no gradient; allowed: one of them")
    return said


def are_images(samples: Any) -> bool:
    """[B, 3, H, W]; tokens are [B, L], relaxed ones [B, L, V]."""
    return samples.ndim == 4


def to_pixels(images: Tensor) -> Tensor:
    """Images of finite numbers in [0, 1] -> round(255 x) as uint8, on their device."""
    import torch

    return (images.float() * 255).round().clamp(0, 255).to(torch.uint8)


def as_wanted(samples: Tensor, wants: Wants) -> Tensor:
    """Images in the type that a reward wants, whatever type they came in."""
    import torch

    if not are_images(samples) or (samples.dtype == torch.uint8) == (wants == "uint8"):
        return samples
    return to_pixels(samples) if wants == "uint8" else samples.float() / 255
