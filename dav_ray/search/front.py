"""Where searches stand between steps: the states that were kept, their candidates, and what is known of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dav_ray.diffusion.base import Kernel, Prediction
from dav_ray.search.weights import probabilities


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
