"""A reward that costs time and nothing else."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor


class SlowReward:
    """Sleeps `seconds` per sample, and `latency` seconds more per call; the mean of each sample is its reward."""

    differentiable = False

    def __init__(self, seconds: float = 0.0, latency: float = 0.0) -> None:
        self._seconds, self._latency = seconds, latency

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        time.sleep(self._seconds * len(samples) + self._latency)
        return samples.to(torch.float64).flatten(1).mean(1)
