"""How the value of a state grows from nothing to r / alpha: V(x_t) = temper_t r(x0_hat(x_t)) / alpha, temper_0 = 1."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

HALVINGS = 40


def fixed(kind: str, gamma: float, t: int, steps: int) -> float:
    """discount: gamma^t, as DAV has it; linear: 1 - t/T."""
    return gamma**t if kind == "discount" else 1 - t / steps


def adaptive(share: float, log_weight: Tensor, increment: Callable[[float], Tensor], last: float) -> float:
    """The largest temper in [last, 1] that keeps `share` of the particles effective (Zhou, Johansen and Aston 2016).

    log_weight [N]: carried so far; increment(temper) -> [N]: what the step would add. `last` where none does.
    """
    if conditional_share(log_weight, increment(1.0)) >= share:
        return 1.0
    low, high = last, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if conditional_share(log_weight, increment(middle)) >= share:
            low = middle
        else:
            high = middle
    return low


def conditional_share(log_weight: Tensor, log_increment: Tensor) -> float:
    """(sum_i W_i w_i)^2 / sum_i W_i w_i^2 in [0, 1], W_i normalised: how much of the particles the increments w leave.
    0 where all are gone."""
    log_norm = torch.logsumexp(log_weight, 0)
    top = torch.logsumexp(log_weight + log_increment, 0)
    if torch.isneginf(top):
        return 0.0
    return float((2 * top - log_norm - torch.logsumexp(log_weight + 2 * log_increment, 0)).exp())
