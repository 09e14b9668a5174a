"""The real digits: scikit-learn's `load_digits`, enlarged to 32x32 RGB, and their augmentations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Generator, Tensor

SIZE = 32


@dataclass(frozen=True)
class Digits:
    """Images [N, 3, 32, 32] in [0, 1], white on black, and their labels [N], int64 in 0..9."""

    images: Tensor
    labels: Tensor


def real_digits(test_share: float = 0.25) -> tuple[Digits, Digits]:
    """Training and held-out digits; the split is fixed, whatever seed a training run uses."""
    data: Any = load_digits()
    small = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(small, (SIZE, SIZE), mode="bicubic").clamp(0, 1).expand(-1, 3, -1, -1).contiguous()
    labels = torch.tensor(data.target, dtype=torch.int64)
    order = range(len(labels))
    train, test = train_test_split(order, test_size=test_share, stratify=data.target, random_state=0)
    return Digits(images[train], labels[train]), Digits(images[test], labels[test])


def warp(images: Tensor, generator: Generator) -> Tensor:
    """Each image [B, 3, H, W] under its own small rotation, scaling, slant and sub-pixel shift, on black."""

    def spread(low: float, high: float) -> Tensor:
        return torch.rand(len(images), generator=generator) * (high - low) + low

    turn = spread(-10, 10) * math.pi / 180
    slant = spread(-0.15, 0.15)
    wide, tall = 1 / spread(0.8, 1.05), 1 / spread(0.85, 1.02)
    shift = 2 * 2 / SIZE  # up to two pixels, in affine_grid's units where the image spans 2
    rows = [
        torch.stack([wide * turn.cos(), -turn.sin() + slant, spread(-shift, shift)], dim=1),
        torch.stack([turn.sin(), tall * turn.cos(), spread(-shift, shift)], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False).clamp(0, 1)


def degrade(images: Tensor, generator: Generator) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] with random contrast, blur and noise: a reader must bear samples."""
    shape = (len(images), 1, 1, 1)
    contrast = 0.6 + 0.4 * torch.rand(shape, generator=generator)
    floor = (1 - contrast) * torch.rand(shape, generator=generator)
    blurred = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    softness = torch.rand(shape, generator=generator)
    grain = torch.rand(shape, generator=generator) * 0.15 * torch.randn(images.shape, generator=generator)
    return (torch.lerp(images, blurred, softness) * contrast + floor + grain).clamp(0, 1)


def within_label_distance(images: Tensor, labels: Tensor) -> float:
    """Mean Euclidean distance of two grey images [H, W] that share a label, averaged over the labels."""
    flat = images.mean(dim=1).flatten(1)
    return torch.stack([torch.pdist(flat[labels == label]).mean() for label in labels.unique()]).mean().item()
