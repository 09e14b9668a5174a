"""Rewards that take their time without work, so that a search can be interrupted."""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import Tensor

from dav_ray.rewards.jpeg import JpegCompressibility
from dav_ray.rewards.sequence import GcContent

CALL_S = 0.15


class SlowGc(GcContent):
    differentiable = False

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        time.sleep(CALL_S)
        return super().__call__(samples, conditions)


class SlowJpeg(JpegCompressibility):
    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        time.sleep(CALL_S)
        return super().__call__(samples, conditions)
