"""Resampling schemes: which of N weighted particles go on, as pure functions.

Each takes weights [N] (float64, sum 1), the number of draws K and u [max(N, K)] uniform on [0, 1), and returns
ancestors [K] int64, ascending, with E[number of copies of i] = K weights_i.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dav_ray.search.weighting.weights import invert

Scheme = Callable[[Tensor, int, Tensor], Tensor]


def systematic(weights: Tensor, num: int, u: Tensor) -> Tensor:
    """One uniform number, K equidistant points: copies of i are K w_i, rounded down or up."""
    return invert(weights, (torch.arange(num) + u[0]) / num)


def stratified(weights: Tensor, num: int, u: Tensor) -> Tensor:
    """One uniform point in each of K strata."""
    return invert(weights, (torch.arange(num) + u[:num]) / num)


def ssp(weights: Tensor, num: int, u: Tensor) -> Tensor:
    """Srinivasan sampling process (Gerber, Chopin and Whiteley 2019): copies of i are K w_i, rounded down or up, and
    negatively associated. Two fractional parts at a time trade until one of them is whole."""
    expected = weights.double() * num
    copies = expected.floor()
    rest = (expected - copies).tolist()
    i = 0  # the one that is still fractional
    for j in range(1, len(rest)):
        give, get = min(rest[i], 1 - rest[j]), min(1 - rest[i], rest[j])
        # i gives to j with probability get / (give + get): what each can expect stays as it is
        amount = give if give + get > 0 and float(u[j]) * (give + get) < get else -get
        rest[i], rest[j] = rest[i] - amount, rest[j] + amount
        if _whole(rest[i]):
            copies[i] += round(rest[i])
            i = j
        else:
            copies[j] += round(rest[j])
    if rest:
        copies[i] += num - copies.sum()  # the sum is whole: what is left is rounding
    return torch.arange(len(rest)).repeat_interleave(copies.long())


SCHEMES: dict[str, Scheme] = {"systematic": systematic, "stratified": stratified, "ssp": ssp}


def _whole(x: float) -> bool:
    return min(x, 1 - x) < 1e-12
