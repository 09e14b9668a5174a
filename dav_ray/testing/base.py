"""What a problem with a known answer needs beside a model: its reward as the search sees it, and quick noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dav_ray.diffusion.noise import Draws, generator
from dav_ray.rewards.base import Scorer, local_scorer


def scorer(reward: Any) -> Scorer:
    """One reward, in this process."""
    return local_scorer([("reward", 1.0, reward)])


class BulkNoise:
    """One generator per step for all trajectories: a quick stand-in for `KeyedNoise` where only the law matters.

    What a trajectory draws depends on how many there are. Key of a step's generator: (seed, t, copy).
    """

    def __init__(self, seed: int, num: int, copy: int = 0) -> None:
        self._seed, self._num, self._copy = seed, num, copy

    def copies(self, num: int) -> BulkNoise:
        """Noise of num times as many trajectories, all independent."""
        return BulkNoise(self._seed, self._num * num, self._copy)

    def nth(self, copy: int) -> BulkNoise:
        """Other noise for the same trajectories; 0 is this one."""
        return BulkNoise(self._seed, self._num, copy)

    def at(self, t: int) -> Draws:
        return _Bulk(generator(self._seed, t, self._copy, 0), self._num)


class _Bulk:
    def __init__(self, generator: torch.Generator, num: int) -> None:
        self._generator, self._num = generator, num

    def normal(self, shape: Sequence[int]) -> Tensor:
        return torch.randn((self._num, *shape), generator=self._generator)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        return torch.rand((self._num, *shape), generator=self._generator, dtype=torch.float64)
