"""What a problem with a known answer needs beside a model: its reward as the search sees it, and quick noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dav_ray.noise import Draws
from dav_ray.rewards.base import Scorer, local_scorer


def scorer(reward: Any) -> Scorer:
    return local_scorer([("reward", 1.0, reward)])


class BulkNoise:
    """One generator per step for all trajectories: a quick stand-in for `KeyedNoise` where only the law matters."""

    def __init__(self, seed: int, num: int) -> None:
        self._seed, self._num = seed, num

    def at(self, t: int) -> Draws:
        return _Bulk(torch.Generator().manual_seed(1000 * self._seed + t), self._num)


class _Bulk:
    def __init__(self, generator: torch.Generator, num: int) -> None:
        self._generator, self._num = generator, num

    def normal(self, shape: Sequence[int]) -> Tensor:
        return torch.randn((self._num, *shape), generator=self._generator)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        return torch.rand((self._num, *shape), generator=self._generator, dtype=torch.float64)
