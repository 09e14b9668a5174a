"""What a search strategy is: a function of (model, reward, conditions, noise) that returns accepted trajectories.

A new strategy is one file with one class that meets `Search`, named in `strategy`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dav_ray.diffusion.base import Diffusion, Kernel
from dav_ray.noise import KeyedNoise, Noise
from dav_ray.search.options import Search as SearchConfig
from dav_ray.search.temperature import number
from dav_ray.types import Trajectories


class Scorer(Protocol):
    """The reward as the search sees it: checked, weighted, local or remote. RewardError on NaN, shape or failure."""

    def score(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        """samples [N, ...] -> [N] float64."""
        ...

    def score_each(self, samples: Tensor, conditions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The same [N], and each reward's own value, unweighted, [N, R] float64."""
        ...

    def score_and_grad(self, samples: Tensor, conditions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """samples [N, ...] -> reward [N] float64 and d reward_n / d samples_n [N, ...]."""
        ...


class Search(Protocol):
    def __call__(
        self, diffusion: Diffusion, scorer: Scorer, conditions: Sequence[str], noise: KeyedNoise
    ) -> Trajectories:
        """One accepted trajectory per condition."""
        ...


def strategy(
    config: SearchConfig, alpha: float | None = None, *, blend: bool = False, complete: bool = False
) -> Search:
    """The configured search; alpha: what `search.alpha` came to where it is in standard deviations.

    Its trajectories carry to the M-step all candidates (blend: mstep.candidates = all), or the winners' completed x_0
    (complete: mstep.target = completed).
    """
    from dav_ray.search.best_of_n import BestOfN
    from dav_ray.search.dav import Dav
    from dav_ray.search.none import NoSearch
    from dav_ray.search.refine import Refine
    from dav_ray.search.skipping import unscored
    from dav_ray.search.smc import Smc
    from dav_ray.search.svdd import Svdd

    alpha = number(config.alpha, alpha)
    dav = Dav(
        *(config.candidates, alpha, config.gamma, config.gradient, config.beta),
        *(blend, complete, config.ratio, config.choice, unscored(config)),
    )
    match config.kind:
        case "dav":
            return dav
        case "smc":
            return Smc(dav, config.particles, config.resampling, config.resample_below, config.tempering)
        case "svdd":
            return Svdd(config.candidates, alpha, config.choice)
        case "refine":
            return Refine(dav, config.repeats, config.depth)
        case "best_of_n":
            return BestOfN(config.candidates)
        case "none":
            return NoSearch(alpha, config.beta)


Observer = Callable[[Tensor, int, Kernel], None]  # (x_t, t, kernel at x_t)


@torch.no_grad()
def ancestral(diffusion: Diffusion, conditions: Sequence[str], noise: Noise, observe: Observer | None = None) -> Tensor:
    """Plain sampling, T network evaluations each: states [T+1, B, *event], x_T first."""
    x = diffusion.prior(conditions, noise.at(diffusion.steps))
    states = [x]
    for t in range(diffusion.steps, 0, -1):
        kernel = diffusion.predict(x, t, conditions).kernel
        if observe is not None:
            observe(x, t, kernel)
        x = kernel.sample(1, noise.at(t - 1))[:, 0]
        states.append(x)
    return torch.stack(states)
