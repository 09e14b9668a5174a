"""What no search can be faster than: its evaluations and its decodings, each at the batch at which the bare network is
quickest on this machine, and nothing else.

    seconds per sample = evaluations x seconds of an evaluation + decodings x seconds of a decoding

The networks are bare: without adapters, as if these were merged. On a GPU they are compiled and channels-last.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dav_ray.config.families.table import family_of
from jobs.performance.network import bare, decoding, forward
from jobs.performance.timing import best_batch, seconds
from jobs.performance.workloads import Workload

BATCHES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Calls:
    """Of one network. batch: states per call; number: calls in a turn; states: that an accepted sample needs."""

    work: Callable[[], Any]
    batch: int
    number: int
    states: float

    def seconds(self, device: str) -> float:
        """Per accepted sample."""
        took = seconds(lambda: [self.work() for _ in range(self.number)], device)
        return took / self.number / self.batch * self.states


@dataclass(frozen=True)
class Limit:
    """network; decoder: none where nothing is decoded."""

    network: Calls
    decoder: Calls | None
    device: str

    def seconds(self) -> float:
        """Per accepted sample, measured now."""
        return sum(part.seconds(self.device) for part in (self.network, self.decoder) if part is not None)


def limit(work: Workload, evaluations: float, decodings: float) -> Limit:
    """evaluations, decodings: per accepted sample. A turn does as many of each as the workload's chunk needs."""
    model: Any = bare(work)
    network = _quick(model.trainable(), work.device)
    found = _calls(work, evaluations, lambda size: forward(work, size, network))
    if family_of(work.config.model).discrete:
        return Limit(found, None, work.device)
    vae = model._parts.vae
    vae.decoder = _quick(vae.decoder, work.device)
    return Limit(found, _calls(work, decodings, lambda size: decoding(work, size, vae)), work.device)


def _calls(work: Workload, states: float, at: Callable[[int], Callable[[], Any]]) -> Calls:
    batch = best_batch(at, BATCHES, work.device)
    return Calls(at(batch), batch, math.ceil(states * work.batch / batch), states)


def _quick(network: Any, device: str) -> Any:
    """As fast as it gets without changing what it computes by more than the last bits."""
    if device != "cuda":
        return network
    return torch.compile(network.to(memory_format=torch.channels_last))
