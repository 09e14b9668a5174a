"""Legibility of the handwritten digits that the shipped `assets/digits` pipeline draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

ASSET = Path(__file__).resolve().parents[1] / "assets" / "digits"
READER_FILE = Path("reader") / "model.safetensors"


class DigitReader(nn.Module):
    """Small convolutional classifier of white-on-black digits.

    Normalisation is by groups, not by batch, so a verdict on one image never depends on its neighbours.
    """

    size = 32
    feature_dim = 64

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.GroupNorm(4, 16), nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.GroupNorm(4, 32), nn.SiLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.GroupNorm(4, 32), nn.SiLU(),
            nn.Flatten(), nn.Linear(32 * 4 * 4, self.feature_dim), nn.SiLU(),
        )  # fmt: skip
        self.head = nn.Linear(self.feature_dim, len(DIGIT_NAMES))

    @classmethod
    def load(cls, path: str | Path | None = None) -> DigitReader:
        """The trained reader, float32, frozen, in eval mode, from `path` (default: the shipped file)."""
        reader = cls()
        weights = load_file(path or ASSET / READER_FILE)
        reader.load_state_dict({name: weight.float() for name, weight in weights.items()})
        return reader.eval().requires_grad_(False)

    def features(self, images: Tensor) -> Tensor:
        """Penultimate activations, float32 [B, 64], of images [B, 3, H, W] in [0, 1]; differentiable."""
        grey = images.float().mean(dim=1, keepdim=True)
        if grey.shape[-2:] != (self.size, self.size):
            grey = F.interpolate(grey, (self.size, self.size), mode="bilinear", antialias=True)
        return self.body(grey * 2 - 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, 10] over the digits 0..9 of images [B, 3, H, W] in [0, 1]."""
        return self.head(self.features(images))


class DigitLegibility:
    """Reward: 1 where the reader sees the digit that the prompt names, else 0."""

    differentiable = False

    def __init__(self, path: str | Path | None = None) -> None:
        self.reader = DigitReader.load(path)

    @torch.no_grad()
    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        """Score images `samples` [B, 3, H, W] in [0, 1] against B digit names; float32 [B] of 0.0 and 1.0."""
        wanted = torch.tensor([digit_index(name) for name in conditions], device=samples.device)
        if len(wanted) != len(samples):
            raise ValueError(f"{len(samples)} samples but {len(wanted)} conditions")
        seen = self.reader.to(samples.device)(samples).argmax(dim=1)
        return (seen == wanted).float()


def digit_index(name: str) -> int:
    """The digit 0..9 that a prompt names; ValueError for any other prompt."""
    try:
        return DIGIT_NAMES.index(name.strip().lower())
    except ValueError:
        expected = ", ".join(DIGIT_NAMES)
        raise ValueError(f"prompt {name!r} is no digit name; expected one of: {expected}") from None
