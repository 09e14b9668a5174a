"""A discrete diffusion whose reverse kernels are free tables: unrestricted, and small enough that every law is known.

A state is a number in 0..S-1, x_t an int64 tensor [B, 1]. x_T is one state always, as a masked model's is: the policy
has no say in p(x_T), so only then is every law of x_0 within its reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dav_ray.diffusion.base import Prediction
from dav_ray.diffusion.noise import Draws
from dav_ray.diffusion.policy_network import PolicyNetwork

START = 0  # x_T


@dataclass(frozen=True)
class TableKernel:
    """The law of x_{t-1} given B states: log_p [B, S], normalised."""

    log_p: Tensor

    @property
    def deterministic(self) -> bool:
        return False

    def sample(self, num: int, rng: Draws) -> Tensor:
        """[B, num, 1] by inversion in float64."""
        cumulative = self.log_p.double().exp().cumsum(-1).unsqueeze(1)
        u = rng.uniform((num,)).unsqueeze(-1)
        # scaled by the last entry, so that rounding can never choose past the end
        return (u * cumulative[..., -1:] >= cumulative[..., :-1]).sum(-1, keepdim=True)

    def log_prob(self, x_prev: Tensor) -> Tensor:
        """x_prev [B, M, 1] -> [B, M] float64."""
        return self.log_p.double().gather(-1, x_prev.squeeze(-1))

    def tilt(self, grad: Tensor) -> TableKernel:
        """Outcomes times exp(grad [B, S]), renormalised."""
        return TableKernel(torch.log_softmax(self.log_p + grad, dim=-1))

    def nll(self, x_prev: Tensor) -> Tensor:
        """-log p [B] of states x_prev [B, 1], or of their shares [B, S] (`blend`)."""
        if x_prev.shape[1] == 1:
            return -self.log_p.gather(-1, x_prev.long()).squeeze(-1)
        return -(x_prev * self.log_p).sum(-1)

    def kl(self, other: TableKernel) -> Tensor:
        return (self.log_p.exp() * (self.log_p - other.log_p)).sum(-1)

    def blend(self, candidates: Tensor, weights: Tensor) -> Tensor:
        """Shares of the states [B, S] float32: p + sum_m (w_m - 1/M) onehot(x_m); they sum to one."""
        excess = weights - 1 / weights.shape[1]
        return self.log_p.double().exp().scatter_add(-1, candidates.squeeze(-1), excess).float()

    def join(self, other: TableKernel) -> TableKernel:
        return TableKernel(torch.cat([self.log_p, other.log_p]))

    def detach(self) -> TableKernel:
        return TableKernel(self.log_p.detach())

    def take(self, rows: Tensor) -> TableKernel:
        return TableKernel(self.log_p[rows])


class Tables(nn.Module):
    """logits [T+1, S, S]: step t, state x_t, state x_{t-1}; those of t = 0 are not used."""

    def __init__(self, kernels: Sequence[Tensor]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.stack([torch.zeros_like(kernels[0]), *reversed(kernels)]).float())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """log p(x_{t-1} | x_t), x [B], t [B] -> [B, S]."""
        rows = torch.log_softmax(self.logits, dim=-1).flatten(0, 1)
        return rows.index_select(0, t * rows.shape[1] + x)


class TabularChain(PolicyNetwork):
    """kernels: the pretrained model's, [S, S] each (row x_t, column x_{t-1}), of the steps t = T..1."""

    timeless = False

    def __init__(self, kernels: Sequence[Tensor]) -> None:
        super().__init__(Tables([k.log() for k in kernels]))
        self.steps, self.states = len(kernels), len(kernels[0])
        self.train_all_weights()

    def matrices(self, *, reference: bool = False) -> list[Tensor]:
        """The kernels of t = T..1, [S, S] float64."""
        logits = (self._frozen if reference else self._network).logits.detach()
        return list(torch.softmax(logits[1:].double(), dim=-1).flip(0))

    def load(self, kernels: Sequence[Tensor]) -> TabularChain:
        """The same pretrained model with another policy."""
        self._network.load_state_dict(Tables([k.clamp_min(1e-30).log() for k in kernels]).state_dict())
        return self

    def guesses(self, *, reference: bool = False) -> Tensor:
        """x0_hat of every state, [T+1, S], t = 0 first."""
        return likeliest(self.matrices(reference=reference))

    def prior(self, conditions: Sequence[str], rng: Draws) -> Tensor:
        return torch.full((len(conditions), 1), START)

    def deterministic(self, t: int) -> bool:
        return False

    def predict(
        self, x_t: Tensor, t: int | Tensor, conditions: Sequence[str], *, reference: bool = False
    ) -> Prediction:
        x = x_t.squeeze(-1).long()
        steps = t if isinstance(t, Tensor) else torch.full((len(x),), t)
        x0_hat = self.guesses(reference=reference)[steps, x].unsqueeze(-1)
        self._count(len(x), reference=reference)
        return Prediction(TableKernel(self.called(reference=reference)(x, steps)), x0_hat)

    def decode(self, x_0: Tensor, conditions: Sequence[str], t: int = 0) -> Tensor:
        return x_0


class Foresight(TabularChain):
    """The same chain, but x0_hat is the number S t + x_t, which says step and state: a reward [(T+1) S] can then be any
    value of both, the exact soft ones among them, and its first S numbers are r."""

    def guesses(self, *, reference: bool = False) -> Tensor:
        return torch.arange((self.steps + 1) * self.states).reshape(-1, self.states)


def likeliest(kernels: Sequence[Tensor]) -> Tensor:
    """argmax over x_0 of p(x_0 | x_t), [T+1, S], t = 0 first, by matrix products. kernels [S, S] for t = T..1."""
    products = [torch.eye(len(kernels[0]), dtype=torch.float64)]
    for kernel in reversed(kernels):
        products.append(kernel @ products[-1])
    return torch.stack(products).argmax(-1)


def chain(states: int = 12, steps: int = 5, seed: int = 0, noise: float = 0.4) -> tuple[TabularChain, Tensor]:
    """A pretrained model that is exact, and the law [S] of its data.

    Forward: x_0 from a random law; at t = 1..T-1 the state stays with probability 1 - noise, else a random table says
    where it goes; at T all are sent to `START`. Its reversal: K_t(x' | x) = m_{t-1}(x') F_t(x | x') / m_t(x).
    """
    generator = torch.Generator().manual_seed(seed)
    data = _random_laws((states,), generator)
    marginal, kernels = data, []
    for _ in range(steps - 1):
        moves = _random_laws((states, states), generator)
        forward = (1 - noise) * torch.eye(states, dtype=torch.float64) + noise * moves  # row x_{t-1}, column x_t
        after = marginal @ forward
        kernels.append((marginal.unsqueeze(1) * forward / after).T)
        marginal = after
    kernels.append(marginal.expand(states, states))  # x_T says nothing of x_{T-1}
    return TabularChain(kernels[::-1]), data


def _random_laws(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.softmax(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)


class StateScores:
    """A reward for every state: table [S]."""

    differentiable = False

    def __init__(self, table: Tensor) -> None:
        self.table = table

    @classmethod
    def random(cls, states: int, seed: int = 0) -> StateScores:
        return cls(torch.randn(states, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        return self.table[samples.squeeze(-1)]
