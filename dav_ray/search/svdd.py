"""SVDD (Li et al. 2024, arXiv 2408.08252): M candidates from the model itself, one kept by the value of its guess.

No tilt, no density ratio, no discount: log w_m = r(x0_hat(x_m)) / alpha.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dav_ray.diffusion.base import Diffusion
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.search.base import Scorer
from dav_ray.search.dav import Dav
from dav_ray.types import Trajectories


@dataclass(frozen=True)
class Svdd:
    """candidates M >= 1; alpha > 0; choice: draw by softmax(log w), or the best, which is SVDD at alpha -> 0 and leaves
    no weight. Evaluations: those of `Dav` without gradient."""

    candidates: int
    alpha: float
    choice: Literal["draw", "best"] = "draw"

    def __call__(
        self, diffusion: Diffusion, scorer: Scorer, conditions: Sequence[str], noise: KeyedNoise
    ) -> Trajectories:
        search = Dav(self.candidates, self.alpha, gamma=1.0, gradient=False, beta=0.0, choice=self.choice)
        return search(diffusion, scorer, conditions, noise)
