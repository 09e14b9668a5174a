"""The weights of the search, in float64: pure functions of log w [B, M]."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# How far a candidate whose guess x0_hat is infeasible stands below the worst feasible one of its step, in nats. A guess
# is no verdict: with a gap much larger the few that turn out well would carry all of E[W].
INFEASIBLE_GAP = 3.0


def value(reward: Tensor, alpha: float, gamma: float, t: int) -> Tensor:
    """V(x_t) = gamma^t r(x0_hat(x_t)) / alpha (arXiv 2510.00502), reward and V [B, M]; V(x_0) = r(x_0) / alpha.

    For t >= 1 it is finite: minus infinity becomes the row's least finite value less `INFEASIBLE_GAP`, or 0 where all
    are infeasible. Any finite number keeps log W proper, since the same one is subtracted again.
    """
    v = gamma**t * reward.double() / alpha
    dead = torch.isneginf(v)
    if t == 0 or not bool(dead.any()):
        return v
    least = torch.where(dead, torch.inf, v).amin(dim=1, keepdim=True) - INFEASIBLE_GAP
    return torch.where(dead, torch.where(torch.isinf(least), 0.0, least), v)


def logmeanexp(log_w: Tensor) -> Tensor:
    """log of the mean over candidates of exp(log_w), [B, M] -> [B]; -inf where all are."""
    return torch.logsumexp(log_w.double(), dim=1) - math.log(log_w.shape[1])


def probabilities(log_w: Tensor) -> Tensor:
    """softmax(log_w) over candidates, [B, M] -> [B, M]; uniform where all weights are zero (-inf): such a row carries
    weight 0 and only has to exist."""
    log_w = log_w.double()
    dead = torch.isneginf(log_w).all(dim=1, keepdim=True)
    return torch.softmax(torch.where(dead, torch.zeros_like(log_w), log_w), dim=1)


def choose(log_w: Tensor, u: Tensor) -> Tensor:
    """One index per row drawn from softmax(log_w) by inversion of u [B] in [0, 1). log_w [B, M] -> [B] int64."""
    cumulative = probabilities(log_w).cumsum(dim=1)
    # scaled by the last entry, so that rounding can never choose past the end
    index = torch.searchsorted(cumulative, u.double().unsqueeze(1) * cumulative[:, -1:], right=True)
    return index.squeeze(1).clamp_max(log_w.shape[1] - 1)


def effective_size(log_w: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 over candidates, [B, M] -> [B] in [1, M]; 0 where all weights are zero."""
    log_w = log_w.double()
    size = (2 * torch.logsumexp(log_w, 1) - torch.logsumexp(2 * log_w, 1)).exp()
    return torch.where(torch.isneginf(log_w).all(dim=1), torch.zeros_like(size), size)


def normalise(log_weight: Sequence[float], conditions: Sequence[str]) -> list[float]:
    """W_i with mean 1 within each condition, from log W_i; a condition whose weights are all zero stays at zero."""
    weights = [0.0] * len(log_weight)
    groups: dict[str, list[int]] = {}
    for i, condition in enumerate(conditions):
        groups.setdefault(condition, []).append(i)
    for rows in groups.values():
        top = max(log_weight[i] for i in rows)
        if top == -math.inf:
            continue
        scaled = [math.exp(log_weight[i] - top) for i in rows]
        mean = math.fsum(scaled) / len(rows)
        for i, w in zip(rows, scaled, strict=True):
            weights[i] = w / mean
    return weights
