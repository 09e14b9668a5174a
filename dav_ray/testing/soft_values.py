"""Exact soft values of the enumerable masked model, and the exact laws of what searches accept.

    V*(x_t) = log E[exp(r(x_0) / alpha) | x_t],   V*(x_0) = r(x_0) / alpha

With V* in place of the guess gamma^t r(x0_hat) / alpha the accepted samples approach the tilted law as M grows; with
the guess they approach another law. Both are written out here, for any M.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dav_ray.diffusion.base import Prediction, Room
from dav_ray.diffusion.masked.model import MaskedDiffusion
from dav_ray.diffusion.noise import Draws
from dav_ray.testing.enumerable import (
    LENGTH,
    MASK,
    SEQUENCES,
    STATES,
    Scores,
    carried,
    completions,
    matrices,
    state_index,
)
from dav_ray.types import Cost

END = 1e-5  # continuous time at which sampling stops, where a token is masked with that probability


def soft_values(diffusion: MaskedDiffusion, reward: Scores, alpha: float, beta: float = 0.0) -> Tensor:
    """V* of every state under the anchor p_theta^(1-beta) p_theta0^beta, [T+1, 256] float64, t = 0 first; masks that
    the last step left are scored as the clean-up fills them."""
    values = [(reward.table.double() / alpha)[completions(diffusion)]]
    for chances in reversed(matrices(diffusion, beta)):
        values.append(torch.logsumexp(chances.log() + values[-1], dim=1))
    return torch.stack(values)


def guessed_values(diffusion: MaskedDiffusion, reward: Scores, alpha: float, gamma: float) -> Tensor:
    """V(x_t) = gamma^t r(x0_hat(x_t)) / alpha of every state, [T+1, 256] float64, t = 0 first; x0_hat is the state with
    the likeliest letter at every mask."""
    reached = (reward.table.double() / alpha)[completions(diffusion)]
    return torch.stack([gamma**t * reached for t in range(diffusion.steps + 1)])


# ---- what a search with given values accepts, exactly ----


def accepted_chain(
    diffusion: MaskedDiffusion,
    values: Tensor,
    candidates: float,
    best: bool = False,
    unscored: frozenset[int] = frozenset(),
) -> list[Tensor]:
    """For t = T..1 the law [256, 256] of the successor that is kept of M candidates from the model's own step, with
    log w = V, values [T+1, 256]; best: the argmax is kept. M may be infinite where it is not. unscored: the t of states
    x_t that are drawn without a choice."""
    keep = largest if best else selection
    steps = zip(range(diffusion.steps - 1, -1, -1), matrices(diffusion), reversed(values[:-1]), strict=True)
    return [q if t in unscored else keep(q, (v - v.max()).exp().expand_as(q), candidates) for t, q, v in steps]


def accepted_law(
    diffusion: MaskedDiffusion,
    values: Tensor,
    candidates: float,
    best: bool = False,
    unscored: frozenset[int] = frozenset(),
) -> Tensor:
    """Mass of every sequence [81] among accepted samples, unweighted."""
    return carried(diffusion, accepted_chain(diffusion, values, candidates, best, unscored))


def selection(q: Tensor, weight: Tensor, candidates: float) -> Tensor:
    """The law [S, N] of the one of M draws from each row of q [S, N] that is kept in proportion to weight [S, N] > 0.

    Any draw may be the one that is kept, and 1 / (w + rest) = int_0^inf exp(-u (w + rest)) du, so

        P(x) = M q(x) w(x) int_0^inf exp(-u w(x)) phi(u)^(M-1) du,   phi(u) = sum_y q(y) exp(-u w(y))

    by the trapezoidal rule in log u, which converges exponentially. M infinite: P = q w / sum q w.
    """
    weight = weight / (q * weight).sum(1, keepdim=True)
    if math.isinf(candidates):
        return q * weight
    row, column = q.nonzero(as_tuple=True)
    chance, w = q[row, column], weight[row, column]
    grid = torch.arange(-30.0, 4 - math.log(float(w.min())), 0.25, dtype=torch.float64)
    decay = (-w.unsqueeze(1) * grid.exp()).exp()  # [successors, points]
    phi = q.new_zeros(len(q), len(grid)).index_add(0, row, chance.unsqueeze(1) * decay)
    integral = 0.25 * (grid.exp() * decay * phi[row] ** (candidates - 1)).sum(1)
    return torch.zeros_like(q).index_put((row, column), candidates * chance * w * integral)


def largest(q: Tensor, weight: Tensor, candidates: float) -> Tensor:
    """The same where the draw of largest weight is kept, any of those that tie: F(w)^M - F(w-)^M, shared by q."""
    at_most = torch.stack([row @ (w.unsqueeze(1) <= w).double() for row, w in zip(q, weight, strict=True)])
    below = torch.stack([row @ (w.unsqueeze(1) < w).double() for row, w in zip(q, weight, strict=True)])
    return torch.where(q > 0, q * (at_most**candidates - below**candidates) / (at_most - below), 0.0)


def refined_law(
    diffusion: MaskedDiffusion,
    reward: Scores,
    alpha: float,
    chain: list[Tensor],
    repeats: int,
    depth: int,
) -> Tensor:
    """Mass of every sequence [81] after `refine`: each repeat masks a sample as at step `depth`, searches again from
    there (`chain`, as `accepted_chain` gives it) and moves with probability sigmoid((r' - r) / alpha)."""
    hidden = END + (1 - END) * depth / diffusion.steps
    states, sequences = torch.tensor(STATES), torch.tensor(SEQUENCES).unsqueeze(1)
    place = torch.where(states == MASK, hidden, torch.where(states == sequences, 1 - hidden, 0.0))
    again = carried(diffusion, chain[-depth:], place.double().prod(-1))
    score = reward.table.double() / alpha
    moves = again * torch.sigmoid(score - score.unsqueeze(1))
    kernel = moves + torch.diag(1 - moves.sum(1))
    return carried(diffusion, chain) @ torch.linalg.matrix_power(kernel, repeats)


# ---- a search with exact values ----


class ExactValues:
    """A masked diffusion and its reward, seen by a search as ones whose guesses are exact soft values (gamma = 1).

    What it predicts as x0_hat is the state itself with its step, [B, L+1] tokens, and the reward looks up alpha V*
    there; samples are sequences [B, L] with a zero behind them. Nothing of the search changes.
    """

    timeless = False  # a value depends on the step
    rooms: tuple[Room, ...] = ()
    differentiable = False

    def __init__(self, diffusion: MaskedDiffusion, reward: Scores, alpha: float) -> None:
        self.steps = diffusion.steps
        self.graphs = diffusion.graphs
        self._diffusion, self._values = diffusion, alpha * soft_values(diffusion, reward, alpha)

    @property
    def cost(self) -> Cost:
        return self._diffusion.cost

    def prior(self, conditions: Sequence[str], rng: Draws) -> Tensor:
        return self._diffusion.prior(conditions, rng)

    def deterministic(self, t: int) -> bool:
        return False

    def predict(self, x_t: Tensor, t: int, conditions: Sequence[str], *, reference: bool = False) -> Prediction:
        kernel = self._diffusion.predict(x_t, t, conditions, reference=reference).kernel
        return Prediction(kernel, _stamped(x_t, t))

    def decode(self, x_0: Tensor, conditions: Sequence[str], t: int = 0) -> Tensor:
        """A guess as it is; a final state completed, with step 0."""
        return x_0 if x_0.shape[1] > LENGTH else _stamped(self._diffusion.decode(x_0, conditions), 0)

    def __call__(self, samples: Tensor, conditions: Any) -> Tensor:
        """The reward: alpha V*(x_t) of states with their steps [B, L+1]."""
        return self._values[samples[:, LENGTH], state_index(samples[:, :LENGTH])]


def _stamped(x: Tensor, t: int) -> Tensor:
    return torch.cat([x, torch.full_like(x[:, :1], t)], dim=1)
