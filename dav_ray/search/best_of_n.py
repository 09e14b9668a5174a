"""Best of N: N plain samples per condition, the one with the highest reward is accepted."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dav_ray.diffusion.base import Diffusion
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.diffusion.sampling import ancestral
from dav_ray.search.base import Scorer
from dav_ray.types import Cost, Trajectories


class BestOfN:
    """N * T network evaluations and N reward calls per accepted trajectory. The argmax carries no weight."""

    def __init__(self, num: int) -> None:
        self.num = num

    @torch.no_grad()
    def __call__(
        self, diffusion: Diffusion, scorer: Scorer, conditions: Sequence[str], noise: KeyedNoise
    ) -> Trajectories:
        before, batch = diffusion.cost, len(conditions)
        repeated = [c for c in conditions for _ in range(self.num)]
        states = ancestral(diffusion, repeated, noise.copies(self.num))
        samples = diffusion.decode(states[-1], repeated)
        total, each = scorer.score_each(samples, repeated)
        rewards = total.reshape(batch, self.num)
        best = torch.arange(batch) * self.num + rewards.argmax(dim=1)
        cost = diffusion.cost - before + Cost(reward=len(repeated))
        return Trajectories(
            states[:, best.to(states.device)],
            None,
            samples[best.to(samples.device)],
            rewards.amax(dim=1),
            None,
            torch.ones(batch, dtype=torch.float64),
            cost,
            each=each[best],
        )
