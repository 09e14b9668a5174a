"""Where searches stand between steps: the states that were kept, their candidates, and what is known of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dav_ray.diffusion.base import Kernel, Prediction
from dav_ray.search.weighting.weights import probabilities


@dataclass(frozen=True)
class Front:
    """Where B searches stand: their states x_t, and what is known of them. Rows can be taken, so that particles can be
    resampled with all that belongs to them."""

    x: Tensor
    value: Tensor  # [B] float64, V(x_t) as it was when x_t was kept; V(x_T) := 0
    prediction: Prediction | None  # None where nobody has evaluated x_t yet
    known: Known | None  # None at states that no step has scored, x_T first of all

    @classmethod
    def start(cls, x: Tensor) -> Front:
        return cls(x, torch.zeros(len(x), dtype=torch.float64), None, None)

    @property
    def decoded(self) -> Tensor:
        assert self.known is not None, "nobody has scored it"
        return self.known.decoded

    @property
    def reward(self) -> Tensor:
        assert self.known is not None, "nobody has scored it"
        return self.known.reward

    @property
    def each(self) -> Tensor:
        assert self.known is not None, "nobody has scored it"
        return self.known.each

    def take(self, rows: Tensor) -> Front:
        """The searches of the chosen rows [B'] int64."""
        on_device = rows.to(self.x.device)
        return Front(
            self.x[on_device],
            self.value[rows],
            self.prediction.take(on_device) if self.prediction else None,
            self.known.take(rows) if self.known else None,
        )


@dataclass(frozen=True)
class Expansion:
    """The M candidates of B states, before one is kept; flat fields hold a state's candidates side by side."""

    candidates: Tensor  # [B, M, *event]
    proposal: Kernel
    log_ratio: Tensor  # [B, M] float64, log p_anchor - log q
    children: Prediction | None  # of the candidates, flat; None at t = 0
    known: Known  # flat
    calls: int  # of the reward

    @property
    def reward(self) -> Tensor:
        """[B, M] float64."""
        return self.known.reward.reshape(self.log_ratio.shape)

    def keep(self, column: Tensor, v: Tensor) -> Front:
        """One candidate per state: column [B] int64, v [B, M] their values."""
        batch, num = self.log_ratio.shape
        rows = torch.arange(batch) * num + column
        return Front(self.candidates.flatten(0, 1), v.flatten(), self.children, self.known).take(rows)

    def blend(self, log_w: Tensor) -> Tensor:
        """All candidates as one target of the M-step (`Kernel.blend`)."""
        if self.candidates.shape[1] == 1:
            return self.candidates[:, 0]
        return self.proposal.blend(self.candidates, probabilities(log_w))


@dataclass(frozen=True)
class Known:
    """What is decoded of some states' x0_hat (of the states themselves at t = 0), its reward [N] float64 and what each
    of R rewards said of it [N, R] float64."""

    decoded: Tensor
    reward: Tensor
    each: Tensor

    def take(self, rows: Tensor) -> Known:
        return Known(self.decoded[rows.to(self.decoded.device)], self.reward[rows], self.each[rows])

    def join(self, other: Known) -> Known:
        """These states, then the others, whose rewards were asked."""
        each = self.each if self.each.shape[1] else _unknown(len(self.each), other.each.shape[1])
        pairs = (self.decoded, other.decoded), (self.reward, other.reward), (each, other.each)
        return Known(*(torch.cat(pair) for pair in pairs))

    @classmethod
    def of_none(cls, decoded: Tensor) -> Known:
        """Rewards of none of them are known, nor how many there are."""
        return cls(decoded, _unknown(len(decoded), 1)[:, 0], _unknown(len(decoded), 0))

    @classmethod
    def of_some(cls, decoded: Tensor, rows: Tensor, reward: Tensor, each: Tensor) -> Known:
        """All of `decoded` [N, ...], and the rewards of the chosen rows [K] alone: NaN for the others."""
        whole = _unknown(len(decoded), 1 + each.shape[1])
        whole[rows] = torch.cat([reward.unsqueeze(1), each], dim=1)
        return cls(decoded, whole[:, 0], whole[:, 1:])


def _unknown(num: int, width: int) -> Tensor:
    return torch.full((num, width), torch.nan, dtype=torch.float64)


@dataclass(frozen=True)
class Parents:
    """The states x_t [B, *event] whose candidates are scored, and what is known of them."""

    x: Tensor
    prediction: Prediction
    known: Known | None  # None where no step has scored them
    conditions: Sequence[str]


@dataclass(frozen=True)
class Reuse:
    """Which candidates need an evaluation of their own. A timeless network (a masked model without time conditioning)
    gives the same for equal states: a candidate that equals its parent, or one drawn before it, shares its evaluation.

    For B parents with M candidates each. The pool is: the B parents, then the N rows that are evaluated.

    rows [N]: of the B * M candidates, those to evaluate; source [B * M]: each candidate's place in the pool;
    parents [K]: those that some candidate equals, ascending.
    """

    rows: Tensor
    source: Tensor
    parents: Tensor

    @classmethod
    def of(cls, parents: Tensor, candidates: Tensor) -> Reuse:
        """parents [B, *event], candidates [B, M, *event]: equal states are evaluated once per parent."""
        batch, num = candidates.shape[:2]
        states = torch.cat([parents.unsqueeze(1), candidates], dim=1).flatten(2).cpu()
        equal = (states.unsqueeze(2) == states.unsqueeze(1)).all(-1)
        first = equal.int().argmax(-1)[:, 1:]  # of the first equal state: 0 the parent, m candidate m
        fresh = first == torch.arange(1, num + 1)
        rows = fresh.flatten().nonzero().squeeze(1)
        place = torch.zeros(batch * num, dtype=torch.int64)
        place[rows] = batch + torch.arange(len(rows))
        offset = torch.arange(batch).unsqueeze(1)
        source = torch.where(first == 0, offset, place[(offset * num + first - 1).clamp_min(0)])
        return cls(rows, source.flatten(), (first == 0).any(1).nonzero().squeeze(1))
