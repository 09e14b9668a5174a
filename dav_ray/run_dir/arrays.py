"""States and samples as the arrays that are stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


def stored(values: Tensor) -> np.ndarray:
    """Latents as float32; tokens as uint8, which holds them all (an alphabet has at most 254 letters, and the mask)."""
    return (values.float() if values.is_floating_point() else values.byte()).cpu().numpy()


def stored_sample(sample: Tensor) -> np.ndarray:
    """Images [B, 3, H, W] as pixels [B, H, W, 3], tokens [B, L] as they are; both uint8."""
    return pixels(sample) if sample.is_floating_point() else stored(sample)


def pixels(images: Tensor) -> np.ndarray:
    """Images [B, 3, H, W] in [0, 1] -> uint8 [B, H, W, 3], rounded as diffusers does."""
    return (images.float() * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
