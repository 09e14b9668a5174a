"""The weights of the search, in float64: pure functions of log w [B, M]."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# How far a candidate whose guess x0_hat is infeasible stands below the worst feasible one of its step, in nats. A guess
# is no verdict: with a gap much larger the few that turn out well would carry all of E[W].
INFEASIBLE_GAP = 3.0
HUGE = 1e300  # where r / alpha ends, so that an alpha next to nothing still gives numbers


def value(reward: Tensor, alpha: float, temper: float | Tensor, t: int) -> Tensor:
    """V(x_t) = temper r(x0_hat(x_t)) / alpha, reward and V [B, M]; temper in [0, 1]: gamma^t in DAV (arXiv 2510.00502),
    or [B, 1]; 1 at t = 0.

    For t >= 1 V is finite: minus infinity becomes the row's least finite value less `INFEASIBLE_GAP`, or 0 where all
    are infeasible. Any finite number keeps log W proper, since the same one is subtracted again.
    """
    dead = torch.isneginf(reward)
    v = torch.where(dead, -torch.inf, temper * (reward.double() / alpha).clamp(-HUGE, HUGE))
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
    return invert(probabilities(log_w), u.unsqueeze(1)).squeeze(1)


def invert(weights: Tensor, points: Tensor) -> Tensor:
    """Where points [..., K] in [0, 1] fall among weights [..., N] laid end to end: [..., K] int64; never on a weight of
    zero, whatever rounding does."""
    cumulative = weights.double().cumsum(-1)
    end = cumulative[..., -1:]
    inside = torch.minimum(points.double() * end, torch.nextafter(end, torch.zeros_like(end)))
    return torch.searchsorted(cumulative, inside.contiguous(), right=True)


def effective_size(log_w: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 over candidates, [B, M] -> [B] in [1, M]; 0 where all weights are zero."""
    log_w = log_w.double()
    size = (2 * torch.logsumexp(log_w, 1) - torch.logsumexp(2 * log_w, 1)).exp()
    return torch.where(torch.isneginf(log_w).all(dim=1), torch.zeros_like(size), size)


def log_z(log_weight: Sequence[float], conditions: Sequence[str]) -> float:
    """log Z_hat: within each condition the log of the mean weight, E[W] = Z; their mean over conditions."""
    groups = by_condition(conditions).values()
    means = [logmeanexp(torch.tensor([[log_weight[i] for i in rows]])) for rows in groups]
    return float(torch.stack(means).mean())


def by_condition(conditions: Sequence[str]) -> dict[str, list[int]]:
    """The rows of each condition, in the order in which conditions appear."""
    groups: dict[str, list[int]] = {}
    for i, condition in enumerate(conditions):
        groups.setdefault(condition, []).append(i)
    return groups


def normalise(log_weight: Sequence[float], conditions: Sequence[str]) -> list[float]:
    """W_i with mean 1 within each condition, from log W_i; a condition whose weights are all zero stays at zero."""
    weights = [0.0] * len(log_weight)
    for rows in by_condition(conditions).values():
        top = max(log_weight[i] for i in rows)
        if top == -math.inf:
            continue
        scaled = [math.exp(log_weight[i] - top) for i in rows]
        mean = math.fsum(scaled) / len(rows)
        for i, w in zip(rows, scaled, strict=True):
            weights[i] = w / mean
    return weights
