"""The M-step's objective (arXiv 2510.00502, M-step), a pure function of a batch of transitions.

mean_i W_i sum_t ( -log p_theta(x_{t-1} | x_t, c) + lambda KL(p_theta || p_theta0) ),   mean W_i = 1
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dav_ray.diffusion.base import Diffusion
from dav_ray.types import StepLoss, Transitions


@dataclass(frozen=True)
class Rows:
    """The accepted trajectories that one rank holds, n of them."""

    states: Tensor  # [n, T+1, *event] float32, x_T first
    targets: Tensor | None  # [n, T, *event], fitted in place of the next state
    conditions: tuple[str, ...]
    weights: Tensor  # [n] float64, W_i
    real: Tensor  # [n] bool, False for rows that only pad (their weight is 0)

    def __len__(self) -> int:
        return len(self.conditions)

    def transitions(self, rows: Tensor, t: Tensor) -> Transitions:
        """Pairs (x_t, x_{t-1}) of the rows [N] at the steps t [N] in 1..T."""
        at = self.states.shape[1] - 1 - t  # x_T first: x_t stands at T - t
        conditions = [self.conditions[i] for i in rows.tolist()]
        x_prev = self.states[rows, at + 1] if self.targets is None else self.targets[rows, at]
        return Transitions(self.states[rows, at], x_prev, t, conditions)

    def __add__(self, other: Rows) -> Rows:
        return Rows.joined([self, other])

    @staticmethod
    def joined(parts: Sequence[Rows]) -> Rows:
        """The rows of all parts, in order, copied once. parts: at least one."""
        targets = [part.targets for part in parts if part.targets is not None]
        return Rows(
            torch.cat([part.states for part in parts]),
            torch.cat(targets) if len(targets) == len(parts) else None,
            tuple(condition for part in parts for condition in part.conditions),
            torch.cat([part.weights for part in parts]),
            torch.cat([part.real for part in parts]),
        )


class Objective(Protocol):
    """What the M-step minimises (`mstep.objective`)."""

    def __call__(self, loss: StepLoss, weights: Tensor, kl: float, batch: Transitions) -> Tensor:
        """The sum over N transitions, a scalar to be differentiated. It is called for every micro-batch, and the sums
        are added up: no transition's term may depend on the others.

        loss: nll and KL of each transition [N], in nats; the KL is zero where `kl` is. weights [N] float64, on the
        CPU: W_i of the trajectory, zero for rows that only pad. kl: lambda, `mstep.kl`. batch: the transitions.
        """
        ...


def weighted_sum(loss: StepLoss, weights: Tensor, kl: float, batch: Transitions | None = None) -> Tensor:
    """sum_n W_n (nll_n + lambda kl_n), a scalar: times T over the number of transitions it is the objective. It needs
    nothing of the transitions themselves."""
    return (weights.to(loss.nll) * (loss.nll + kl * loss.kl)).sum()


def batches(rows: Rows, steps: int, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Every (row, t) once, in random order, `size` at a time (the last may be smaller): pairs of [N] int64."""
    order = torch.randperm(len(rows) * steps, generator=generator)
    for batch in order.split(size):
        yield batch // steps, batch % steps + 1


def accumulate(
    diffusion: Diffusion,
    rows: Rows,
    index: Tensor,
    t: Tensor,
    *,
    kl: float,
    scale: float,
    micro_batch: int,
    objective: Objective = weighted_sum,
    backward: Callable[[Tensor], None] = Tensor.backward,
    defer: Callable[[], AbstractContextManager] = nullcontext,
) -> tuple[Tensor, Tensor]:
    """Gradients of scale times the objective over a batch, micro-batch by micro-batch.

    `defer()` surrounds all micro-batches but the last: the ranks exchange gradients once per batch. Returns the
    weighted sums of nll and of kl over the batch, float64 on the model's device: who reads them waits for it.
    """
    nll = kld = torch.zeros((), dtype=torch.float64)
    parts = list(zip(index.split(micro_batch), t.split(micro_batch), strict=True))
    for number, (part_rows, part_t) in enumerate(parts, start=1):
        with nullcontext() if number == len(parts) else defer():
            batch = rows.transitions(part_rows, part_t)
            loss = diffusion.step_loss(batch, reference=kl > 0)
            weights = rows.weights[part_rows].to(loss.nll.device)
            backward(scale * objective(loss, weights, kl, batch))
        nll = nll.to(weights) + (weights * loss.nll.detach().double()).sum()
        kld = kld.to(weights) + (weights * loss.kl.detach().double()).sum()
    return nll, kld
