"""No search: plain samples of the policy, every one accepted."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dav_ray.diffusion.base import Diffusion
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.diffusion.sampling import ancestral
from dav_ray.search.base import Scorer
from dav_ray.types import Cost, Trajectories


class NoSearch:
    def __init__(self, alpha: float, beta: float) -> None:
        self.alpha, self.beta = alpha, beta

    @torch.no_grad()
    def __call__(
        self, diffusion: Diffusion, scorer: Scorer, conditions: Sequence[str], noise: KeyedNoise
    ) -> Trajectories:
        before = diffusion.cost
        states = ancestral(diffusion, conditions, noise)
        sample = diffusion.decode(states[-1], conditions)
        reward, each = scorer.score_each(sample, conditions)
        # A plain sample is properly weighted by exp(r / alpha) for the current policy's tilt; for no other anchor.
        log_weight = reward / self.alpha if self.beta == 0 else None
        cost = diffusion.cost - before + Cost(reward=len(conditions))
        return Trajectories(states, None, sample, reward, log_weight, torch.ones_like(reward), cost, each=each)
