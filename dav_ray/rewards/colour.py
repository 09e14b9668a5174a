"""Differentiable rewards on pixels: small, exact, and enough to see the gradient path at work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Brightness:
    """Mean of all pixels and channels, in [0, 1]."""

    differentiable = True

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        return samples.flatten(1).mean(dim=1)


class TargetColour:
    """Minus the mean squared distance of the pixels to one colour (red, green, blue in [0, 1]); in [-1, 0]."""

    differentiable = True

    def __init__(self, colour: Sequence[float] = (1.0, 0.5, 0.0)) -> None:
        if len(colour) != 3 or not all(0 <= c <= 1 for c in colour):
            raise ValueError(f"colour = {list(colour)}: three numbers in [0, 1] are needed")
        self.colour = tuple(float(c) for c in colour)

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        target = samples.new_tensor(self.colour).reshape(3, 1, 1)
        return -(samples - target).square().flatten(1).mean(dim=1)
