"""Size as JPEG, quality 95, in kB (1000 bytes): the (in)compressibility rewards of DDPO and DAV."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def jpeg_kilobytes(samples: Tensor, quality: int = 95) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] -> size of each as JPEG in kB, [B] float64."""
    import torch
    from PIL import Image

    pixels = (samples.permute(0, 2, 3, 1).float() * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    sizes = []
    for image in pixels:
        with io.BytesIO() as file:
            Image.fromarray(image).save(file, format="JPEG", quality=quality)
            sizes.append(file.tell() / 1000)
    return torch.tensor(sizes, dtype=torch.float64)


class JpegIncompressibility:
    """+ kB: rewards detail."""

    differentiable = False

    def __init__(self, quality: int = 95) -> None:
        self.quality = quality

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        return jpeg_kilobytes(samples, self.quality)


class JpegCompressibility:
    """- kB: rewards plainness."""

    differentiable = False

    def __init__(self, quality: int = 95) -> None:
        self.quality = quality

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        return -jpeg_kilobytes(samples, self.quality)
