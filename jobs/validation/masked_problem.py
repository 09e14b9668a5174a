"""The enumerable masked problem of the validation job, and searches run on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dav_ray.diffusion.masked.model import MaskedDiffusion
from dav_ray.testing.base import BulkNoise, scorer
from dav_ray.testing.enumerable import Scores, distance, floor, frequencies, model, tilted, weighted_share_variance

AT_ONCE = 20_000  # trajectories per call
GAMMA, MANY = 0.9, 4  # discount and candidates, where nothing else is said


@dataclass(frozen=True)
class Problem:
    """target [81] = anchor exp(r / alpha) / Z, the anchor being the sampler's law."""

    diffusion: MaskedDiffusion
    reward: Scores
    alpha: float
    target: Tensor
    z: float

    @classmethod
    def of(cls, moved: float = 0.0, beta: float = 0.0, alpha: float = 1.0) -> Problem:
        """3 letters, length 4, T = 6, logits of every state N(0, 1.5^2), rewards N(0, 1). moved: how far the policy
        is from the pretrained model, of which the anchor has the share beta."""
        diffusion, reward = model(1, moved, steps=6, micro_batch=100_000), Scores(1)
        return cls(diffusion, reward, alpha, *tilted(diffusion, reward, alpha, beta))


@dataclass(frozen=True)
class Found:
    """Accepted samples [N, L], their log W where the search has it, and what the M-step is given."""

    sample: Tensor
    log_weight: Tensor | None
    states: Tensor  # [T+1, N, L]
    targets: Tensor | None

    def distance(self, target: Tensor) -> float:
        """Total variation, unweighted."""
        return distance(frequencies(self.sample), target)

    @property
    def weights(self) -> Tensor:
        assert self.log_weight is not None, "this search gives no weights"
        return self.log_weight.exp()

    def weighted(self, target: Tensor) -> tuple[float, float]:
        """Total variation of the weighted samples, and what it would be if noise alone were left."""
        variance = weighted_share_variance(target, self.sample, self.weights)
        return distance(frequencies(self.sample, self.weights), target), floor(variance)[0]

    @property
    def effective(self) -> float:
        return float(self.weights.sum() ** 2 / self.weights.square().sum())


def accept(search: Any, diffusion: Any, reward: Any, num: int, seed: int) -> Found:
    """`num` trajectories, independent of each other where the search makes them so."""
    parts = []
    for start in range(0, num, AT_ONCE):
        size = min(AT_ONCE, num - start)
        parts.append(search(diffusion, scorer(reward), [""] * size, BulkNoise(1000 * seed + start // AT_ONCE, size)))
    weights = [part.log_weight for part in parts]
    targets = [part.targets for part in parts]
    return Found(
        torch.cat([part.sample for part in parts]),
        None if weights[0] is None else torch.cat(weights),
        torch.cat([part.states for part in parts], dim=1),
        None if targets[0] is None else torch.cat(targets, dim=1),
    )


def number(x: float) -> str:
    return f"{x:.3f}"
