"""What a search strategy is: a function of (model, reward, conditions, noise) that returns accepted trajectories.

A new strategy is one file with one class that meets `Search` and says its `facts.Facts`: a line in `kinds.SEARCHES`, an
entry point of another package, or `search.kind: module.path:Name` of a recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from dav_ray.diffusion.base import Diffusion
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.moved import names_of
from dav_ray.search.warm_start import Starts
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


class WarmSearch(Protocol):
    """A search whose trajectories may go on from samples of the last round (`Facts.starts`)."""

    def __call__(
        self,
        diffusion: Diffusion,
        scorer: Scorer,
        conditions: Sequence[str],
        noise: KeyedNoise,
        starts: Starts | None = None,
    ) -> Trajectories: ...


if not TYPE_CHECKING:  # pyright would take any name for one of this module's
    __getattr__ = names_of("search.base")
