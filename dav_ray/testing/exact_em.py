"""EM rounds by enumeration: what E- and M-step do when neither samples nor optimises.

Kernels are lists of K_t [S, S] float64 for t = T..1, row x_t, column x_{t-1}; values are [T+1, S], t = 0 first. x_T is
one state, `start`. For kernels that are free tables (`chain`) an M-step is exact; the factorised ones of a masked model
reach a projection, which is written out too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dav_ray.diffusion.masked.model import MaskedDiffusion
from dav_ray.testing.enumerable import INDEX, LENGTH, LETTERS, MASK, STATES
from dav_ray.testing.soft_values import selection

Kernels = Sequence[Tensor]


# ---- rounds of EM ----


def anchor(policy: Kernels, pretrained: Kernels, beta: float) -> list[Tensor]:
    """A_t = K_theta^(1-beta) K_theta0^beta, entry by entry and not normalised: their product over t is the joint law
    p_theta(tau)^(1-beta) p_theta0(tau)^beta. beta: 0 current, 1 pretrained."""
    return [k ** (1 - beta) * k0**beta for k, k0 in zip(policy, pretrained, strict=True)]


def log_h(anchored: Kernels, value: Tensor) -> Tensor:
    """log h_t [T+1, S]: h_0 = exp(value), value = r / alpha [S], and h_t(x) = sum_x' A_t(x, x') h_{t-1}(x').

    h_T(start) is Z, the mass of anchor(tau) exp(r(x_0) / alpha).
    """
    out = [value.double()]
    for matrix in reversed(anchored):
        out.append(torch.logsumexp(matrix.log() + out[-1], dim=1))
    return torch.stack(out)


def posterior(anchored: Kernels, value: Tensor) -> list[Tensor]:
    """The kernels of anchor(tau) exp(r(x_0) / alpha) / Z: K'_t(x' | x) = A_t(x, x') h_{t-1}(x') / h_t(x).

    Trajectories have exactly this law because x_T is one state. From x_T ~ p it would take p(x_T) h_T(x_T) / Z in place
    of p(x_T), which the policy never changes: the law of x_0 would then miss the target by what h_T varies over x_T.
    """
    h = log_h(anchored, value)
    return [(a.log() + h[t - 1] - h[t].unsqueeze(1)).exp() for t, a in _by_step(anchored)]


def em_round(policy: Kernels, pretrained: Kernels, value: Tensor, beta: float, kl: float = 0.0) -> list[Tensor]:
    """The policy after an exact E-step and an exact M-step, kl = lambda."""
    fitted = posterior(anchor(policy, pretrained, beta), value)
    return fitted if kl == 0 else list(regularised(torch.stack(fitted), torch.stack([*pretrained]), kl))


def exponent(rounds: int, beta: float) -> float:
    """c_k: after k rounds with lambda = 0 the trajectories' law is p_0(tau) exp(c_k r / alpha) / Z_k.

    c_k = (1 - beta) c_{k-1} + 1, for p_k is p_{k-1}^(1-beta) p_0^beta exp(r / alpha) over its sum. So c_k = k for the
    current anchor, 1 for the pretrained one, and 1/beta - c_k = (1 - beta)^k / beta between them.
    """
    return float(sum((1 - beta) ** j for j in range(rounds)))


def regularised(fitted: Tensor, pretrained: Tensor, kl: float) -> Tensor:
    """Row by row argmin_p of -sum_x q(x) log p(x) + lambda KL(p || p_0), all [..., S].

    Both parts of the M-step are means over the same trajectories, so a free table's states do not meet. Where the slope
    is zero q / p = lambda (log(p / p_0) + c), which u = q / (lambda p) solves: u + log u = c + log(q / (lambda p_0)).
    sum(p) falls in c = 1 / lambda - KL(p || p_0): bisection. For the current anchor the rounds then stand still at
    K proportional to K_0 exp(h_{t-1}(x') / (lambda h_t(x))).
    """
    q, p0 = (matrix.clamp_min(1e-300).log() for matrix in (fitted, pretrained))
    odds = q - p0 - math.log(kl)
    high = torch.full_like(q[..., :1], 1 / kl)
    low = high + p0.amin(dim=-1, keepdim=True)
    for _ in range(60):
        middle = (low + high) / 2
        heavy = (p0 - middle + _omega(middle + odds)).exp().sum(-1, keepdim=True) > 1
        low, high = torch.where(heavy, middle, low), torch.where(heavy, high, middle)
    return torch.softmax(p0 + _omega(low + odds), dim=-1)


def _omega(z: Tensor) -> Tensor:
    """u with u + log u = z, by Newton's method in log u, from above."""
    log_u = torch.where(z < 1, z, z.clamp_min(1).log())
    for _ in range(12):
        log_u = log_u - (log_u.exp() + log_u - z) / (log_u.exp() + 1)
    return log_u.exp()


# ---- a search with M candidates, its weights dropped; its bound ----


def unweighted_round(
    policy: Kernels, pretrained: Kernels, values: Tensor, beta: float, candidates: float
) -> list[Tensor]:
    """The policy after an exact M-step on what a search with M candidates and values V [T+1, S] accepts, W = 1."""
    steps = zip(_log_w(policy, anchor(policy, pretrained, beta), values), policy, strict=True)
    return [selection(k, (w - w.max(dim=1, keepdim=True).values).exp(), candidates) for w, k in steps]


def bound(policy: Kernels, anchored: Kernels, values: Tensor, candidates: float, start: int) -> float:
    """E[log W] over the trajectories that a search with M candidates accepts:

        log W = sum_{t=1..T} logmeanexp_m(log w_m at t) - sum_{t=1..T-1} V(x_t)

    By Jensen's inequality it is at most log E[W] = log Z.

    M = 1 gives log Z - KL(policy || posterior). For M infinite it no longer depends on the policy, and is log Z where V
    is log h; any other V leaves a gap.
    """
    total, mass = 0.0, _point(len(values[0]), start)
    for (t, kernel), log_w in zip(_by_step(policy), _log_w(policy, anchored, values), strict=True):
        total += float(mass @ _log_mean(kernel, log_w, candidates))
        weight = (log_w - log_w.max(dim=1, keepdim=True).values).exp()
        mass = mass @ selection(kernel, weight, candidates)
        total -= float(mass @ values[t - 1]) if t > 1 else 0.0
    return total


def _log_w(policy: Kernels, anchored: Kernels, values: Tensor) -> list[Tensor]:
    """log w = V(x') + log A(x, x') - log K(x, x') for t = T..1, [S, S]; 0 where K is."""
    steps = zip(_by_step(policy), anchored, strict=True)
    return [torch.where(k > 0, values[t - 1] + a.log() - k.log(), 0.0) for (t, k), a in steps]


def _log_mean(q: Tensor, log_w: Tensor, candidates: float) -> Tensor:
    """E log (1/M sum_m w(x_m)), x_m drawn from a row of q [S, S] -> [S]. From log y = int (exp(-u) - exp(-u y)) du / u:

        int (exp(-e^s) - phi(e^s / M)^M) ds,   phi(u) = sum_y q(y) exp(-u w(y)),

    with w over its mean, by the trapezoidal rule, which converges exponentially.
    """
    log_mean = torch.logsumexp(q.log() + log_w, dim=1)
    if math.isinf(candidates):
        return log_mean
    w = (log_w - log_mean.unsqueeze(1)).exp()
    grid = torch.arange(-40.0, 4 - math.log(float(w[q > 0].min())), 0.2, dtype=torch.float64)
    phi = torch.stack([(q * (-w * (u / candidates)).exp()).sum(1) for u in grid.exp()], dim=1)
    return log_mean + 0.2 * ((-grid.exp()).exp() - phi**candidates).sum(1)


# ---- laws ----


def law(kernels: Kernels, start: int) -> Tensor:
    """Mass of every state [S] at t = 0."""
    mass = _point(len(kernels[0]), start)
    for matrix in kernels:
        mass = mass @ matrix
    return mass


def tilt(p: Tensor, value: Tensor) -> Tensor:
    """p exp(value) over its sum, all [S]."""
    return torch.softmax(p.log() + value, dim=0)


def entropy(p: Tensor) -> float:
    """In nats."""
    return -float(torch.xlogy(p, p).sum())


def _point(states: int, start: int) -> Tensor:
    return torch.eye(states, dtype=torch.float64)[start]


def _by_step(kernels: Kernels) -> zip[tuple[int, Tensor]]:
    return zip(range(len(kernels), 0, -1), kernels, strict=True)


# ---- factorised kernels ----


def projection(fitted: Kernels, otherwise: Tensor) -> Tensor:
    """Where the M-step of a masked model without time conditioning ends: letters [256, L, V], fitted being [256, 256].

    -log p(letters that a step unmasks), summed over trajectories, falls apart by state and position, so that at masks
    of x p'(v | x, l) is proportional to sum_t d_t(x) sum_{x': x'_l = v} K'_t(x' | x), d_t being the law of x_t: the
    mass of the transitions from x that put v there, all steps together. `otherwise` where none passes.
    """
    states = torch.tensor(STATES)
    becomes = torch.nn.functional.one_hot(states, LETTERS + 1)[..., :LETTERS].double()  # [256, L, V]
    mass, counts = _point(len(STATES), INDEX[(MASK,) * LENGTH]), torch.zeros_like(becomes)
    for matrix in fitted:
        counts += torch.einsum("s,sx,xlv->slv", mass, matrix, becomes)
        mass = mass @ matrix
    total = counts.sum(-1, keepdim=True)
    used = (total > 0) & (states == MASK).unsqueeze(-1)
    return torch.where(used, counts / total.clamp_min(1e-300), otherwise)


def set_letters(diffusion: MaskedDiffusion, p: Tensor) -> None:
    """Make p [256, L, V] the policy's p(x_0,l = v | state)."""
    module: Any = diffusion.trainable()
    with torch.no_grad():
        module.linear[..., :LETTERS] = p.clamp_min(1e-30).log()
