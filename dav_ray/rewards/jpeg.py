"""Size as JPEG, quality 95, in kB (1000 bytes): the (in)compressibility rewards of DDPO and DAV."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from dav_ray.rewards.samples.pixels import Wants, as_wanted

if TYPE_CHECKING:
    from torch import Tensor

LARGE = 64 * 64  # pixels of an image from which on a thread costs less than it saves


def jpeg_kilobytes(samples: Tensor, quality: int = 95) -> Tensor:
    """Images [B, 3, H, W], uint8 or in [0, 1] -> size of each as JPEG in kB, [B] float64; as many at a time as torch
    has threads."""
    import torch

    pixels = as_wanted(samples, "uint8").permute(0, 2, 3, 1).cpu().numpy()
    threads = min(torch.get_num_threads(), len(pixels))
    if threads > 1 and pixels[0, :, :, 0].size >= LARGE:
        with ThreadPoolExecutor(threads, thread_name_prefix="jpeg") as pool:  # Pillow encodes without the GIL
            sizes = list(pool.map(lambda image: _bytes(image, quality), pixels))
    else:
        sizes = [_bytes(image, quality) for image in pixels]
    return torch.tensor([size / 1000 for size in sizes], dtype=torch.float64)


def _bytes(image: Any, quality: int) -> int:
    from PIL import Image

    with io.BytesIO() as file:
        Image.fromarray(image).save(file, format="JPEG", quality=quality)
        return file.tell()


class JpegIncompressibility:
    """+ kB: rewards detail."""

    differentiable = False
    wants: Wants = "uint8"  # a JPEG has 8 bits
    by_row = True

    def __init__(self, quality: int = 95) -> None:
        self.quality = quality

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        return jpeg_kilobytes(samples, self.quality)


class JpegCompressibility:
    """- kB: rewards plainness."""

    differentiable = False
    wants: Wants = "uint8"  # a JPEG has 8 bits
    by_row = True

    def __init__(self, quality: int = 95) -> None:
        self.quality = quality

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        return -jpeg_kilobytes(samples, self.quality)
