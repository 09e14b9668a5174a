"""Diagnoses alpha: is the choice among candidates too even or too sharp, and which alpha would be better.

A choice among M candidates with weights w is idle where all count alike, blind where one alone counts: its effective
number ESS = (sum w)^2 / sum w^2 is M, or 1. In log w = V + log p_anchor - log q the value V is r / alpha, so that the
candidates that were drawn tell what any other alpha would have made of them: at alpha / s, V is s times as wide. Where
the proposal is tilted, so is its log ratio, to first order: log p - log q falls along the gradient as V rises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dav_ray.search.weighting.weights import effective_size

SCALES = tuple(2.0**k for k in range(-16, 17))  # s
HERE = SCALES.index(1.0)
IDLE, BLIND = 0.95, 1.2  # more than this share of all candidates count; fewer than this many do
GENTLE = 0.75  # of the way from blind to idle: where alphas of 0.1 standard deviations of a reward come to stand
AT_ONCE = 2**16  # candidates, all scales together: what a call holds in memory


class Choices:
    """The choices of B trajectories, step by step."""

    def __init__(self) -> None:
        self._steps: list[Tensor] = []

    def add(self, v: Tensor, log_ratio: Tensor, *, tilted: bool) -> None:
        """v, log_ratio [B, M] of a step."""
        by_value = ladder(v)
        if not bool(log_ratio.any()):
            both = by_value, by_value
        elif tilted:
            both = by_value, ladder(v + log_ratio)
        else:
            both = by_value, ladder(v, log_ratio)
        self._steps.append(torch.stack(both, dim=1))

    def mean(self) -> Tensor | None:
        """[B, 2, K] float64 over steps, as `Trajectories.choices`; None where no step chose."""
        return torch.stack(self._steps).mean(0) if self._steps else None


def ladder(wide: Tensor, fixed: Tensor | None = None) -> Tensor:
    """ESS of log w = s wide + fixed at each of the SCALES: [B, M] -> [B, K] float64."""
    scales = torch.tensor(SCALES, dtype=torch.float64).reshape(-1, 1, 1)
    size = max(1, AT_ONCE // (len(SCALES) * wide.shape[1]))
    found = []
    for start in range(0, len(wide), size):
        log_w = scales * wide[start : start + size].double()
        log_w = log_w if fixed is None else log_w + fixed[start : start + size]
        found.append(effective_size(log_w.flatten(0, 1)).reshape(len(SCALES), -1).T)
    return torch.cat(found)


@dataclass(frozen=True)
class Verdict:
    """What is wrong with choices. ess: mean effective number of candidates; most: as many as there are; alpha: one to
    try, None where none is known that would change it."""

    kind: Literal["idle", "blind"]
    ess: float
    most: float
    alpha: float | None


def judge(by_value: Sequence[float], by_weight: Sequence[float], most: float, alpha: float) -> Verdict | None:
    """What is wrong with choices among `most` candidates at this alpha, None where nothing is. by_value, by_weight [K]:
    mean ESS at the SCALES of exp(V) alone, and of w.

    Idle is a choice that exp(V) alone would make idly too: where the proposal is tilted by the reward's gradient, w may
    be even because the tilt has done the work.
    """
    ess, healthy = by_weight[HERE], IDLE * most
    if healthy <= BLIND:
        return None
    if ess > healthy and by_value[HERE] > healthy:
        return Verdict("idle", ess, most, _suggested(by_value[HERE:], SCALES[HERE:], most, alpha))
    if ess < BLIND:
        return Verdict("blind", ess, most, _suggested(by_weight[HERE::-1], SCALES[HERE::-1], most, alpha))
    return None


def _suggested(sizes: Sequence[float], scales: Sequence[float], most: float, alpha: float) -> float | None:
    """The alpha / s at which the mean ESS, `sizes` at `scales`, first comes to stand GENTLE of the way from blind to
    idle, as far as any of the scales reaches; between scales log s is linear in ESS.

    It is what these candidates say. The next round's come of other parents, which the choices before them have moved.
    """
    low, high = max(BLIND, min(sizes)), min(IDLE * most, max(sizes))
    if low >= high:
        return None
    wanted = low + GENTLE * (high - low)
    pairs = zip(sizes, sizes[1:], scales, scales[1:], strict=False)
    a, b, s, r = next(pair for pair in pairs if min(pair[:2]) <= wanted <= max(pair[:2]))
    return alpha / (s * (r / s) ** ((wanted - a) / (b - a)))
