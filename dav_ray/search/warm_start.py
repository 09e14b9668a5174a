"""Where a round's trajectories start from: samples that the round before accepted (`search.warm_start`).

Which one is a function of the two rounds as wholes, so that neither chunks nor workers change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dav_ray.diffusion.noise import generator
from dav_ray.search.weighting.resampling import systematic
from dav_ray.search.weighting.weights import by_condition, probabilities, value

_STREAM = (0, 0, 0, 1)  # after (seed, round): no other stream's key is as long


@dataclass(frozen=True)
class Starts:
    """What K of a chunk's B trajectories go on from; the others have nothing to go on from."""

    rows: tuple[int, ...]  # K, ascending in 0..B-1
    x_0: Tensor  # [K, *event]
    sample: Tensor  # [K, ...] decoded x_0
    reward: Tensor  # [K] float64, r(x_0), finite
    ess: Tensor  # [K] float64, of the search that found x_0
    each: Tensor  # [K, R] float64, what each reward said of x_0; NaN where that was not stored


def assign(
    mode: str,
    conditions: Sequence[str],
    before: Sequence[str],
    reward: Tensor,
    *,
    alpha: float,
    seed: int,
    round: int,
) -> list[int | None]:
    """The row of the last round that each trajectory of this round starts from, None where it has to start afresh.

    conditions: of this round's trajectories; before, reward [N]: of the last round's, minus infinity where a row can't
    be a start. own: the rows of a condition in order, and again from the first where there are too few; resampled:
    drawn from softmax(r / alpha), copies of a row being what it can expect, rounded down or up.
    """
    rng, rows = generator(seed, round, *_STREAM), by_condition(before)
    sources: list[int | None] = [None] * len(conditions)
    for condition, places in by_condition(conditions).items():
        alive = [i for i in rows.get(condition, ()) if reward[i] > -torch.inf]
        if not alive:
            continue
        picked: Sequence[int] = range(len(places))
        if mode == "resampled":
            weights = probabilities(value(reward[alive].unsqueeze(0), alpha, 1.0, 0))[0]
            u = torch.rand(max(len(alive), len(places)), generator=rng, dtype=torch.float64)
            picked = systematic(weights, len(places), u).tolist()
        for place, pick in zip(places, picked, strict=True):
            sources[place] = alive[pick % len(alive)]
    return sources
