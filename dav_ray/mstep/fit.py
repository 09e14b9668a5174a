"""One round of the M-step on one rank: the optimizer steps over groups of accepted trajectories. No Ray in here.

Ranks meet only in all-reduces: of gradients (DDP), of the number of rows, of metrics. Rows that do not divide by the
world size are padded with weight zero, never dropped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from dav_ray.diffusion.base import Diffusion
from dav_ray.diffusion.device import peak_memory_gb
from dav_ray.diffusion.noise import generator
from dav_ray.errors import RunError
from dav_ray.mstep import registry
from dav_ray.mstep.objective import Rows, accumulate, batches
from dav_ray.mstep.options import MStep, batch_of_rank


@dataclass
class Totals:
    """Sums over a round; `rows` over all ranks, the others of this rank."""

    rows: int = 0  # accepted rows of the first epoch, padding excluded
    transitions: int = 0
    nll: Tensor | float = 0.0
    kl: Tensor | float = 0.0
    grad_norms: list[float] = field(default_factory=list)  # before clipping, one per optimizer step
    busy_s: float = 0.0  # in optimizer steps, not waiting for groups


class Fitter:
    """Optimizer steps on a model whose policy is (or is not) wrapped for data parallelism.

    defer: context in which gradients are not exchanged (DDP's `no_sync`).
    """

    def __init__(
        self,
        diffusion: Diffusion,
        config: MStep,
        seed: int,
        defer: Callable[[], AbstractContextManager] = nullcontext,
        device: str = "cpu",
    ) -> None:
        self._diffusion, self._config, self._seed, self._defer = diffusion, config, seed, defer
        self._parameters = [p for p in diffusion.trainable().parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self._parameters,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True if device == "cuda" else None,  # one kernel for all adapters; on the CPU it has other last bits
        )
        self._device = device
        self._objective = registry.build(config.objective, config.args)
        self._scaler = torch.amp.GradScaler(device, enabled=config.precision == "float16")

    def fit(self, round: int, groups: Iterable[Rows]) -> dict[str, float]:
        """Train on a round: the first epoch group by group as they come, later ones over all rows. Returns metrics
        (summed over T: nats per trajectory), `mstep/rows` among them: the accepted rows that were trained on."""
        start = time.monotonic()
        totals, held = Totals(), list[Rows]()
        for number, group in enumerate(groups):
            rows = pad(group)
            totals.rows += int(total(float(len(group))))
            self._epoch(rows, (round, 0, number), totals)
            if self._config.epochs > 1:
                held.append(rows)
        if held:
            whole = Rows.joined(held)
            for epoch in range(1, self._config.epochs):
                self._epoch(whole, (round, epoch, 0), totals)
        return self._metrics(totals, time.monotonic() - start)

    def _epoch(self, rows: Rows, key: tuple[int, int, int], totals: Totals) -> None:
        rank, world = _rank_and_world()
        # one number longer than the search's keys (seed, round, trajectory, t, copy): no stream serves twice
        order = generator(self._seed, *key, rank, 0)
        size = batch_of_rank(self._config, world)
        start = time.monotonic()
        for index, t in batches(rows, self._diffusion.steps, size, order):
            self._step(rows, index, t, totals)
        totals.busy_s += time.monotonic() - start

    def _step(self, rows: Rows, index: Tensor, t: Tensor, totals: Totals) -> None:
        real = total(float(rows.real[index].sum()))
        if real == 0:
            return  # the same on every rank
        _, world = _rank_and_world()
        self.optimizer.zero_grad(set_to_none=True)
        # DDP averages over ranks: world / real makes it the mean over the real transitions, T the sum over t
        nll, kl = accumulate(
            self._diffusion,
            rows,
            index,
            t,
            kl=self._config.kl,
            scale=self._diffusion.steps * world / real,
            micro_batch=self._config.micro_batch,
            objective=self._objective,
            backward=lambda loss: self._scaler.scale(loss).backward(),
            defer=self._defer,
        )
        self._scaler.unscale_(self.optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self._config.max_grad_norm))
        if not self._scaler.is_enabled() and not math.isfinite(norm):
            raise RunError("train", "the gradient is not finite")  # with float16 the scaler skips such a step
        self._scaler.step(self.optimizer)
        self._scaler.update()
        totals.nll += nll
        totals.kl += kl
        totals.transitions += int(rows.real[index].sum())
        totals.grad_norms.append(norm)

    def _metrics(self, totals: Totals, seconds: float) -> dict[str, float]:
        count = max(1.0, total(float(totals.transitions)))
        steps = self._diffusion.steps
        norms = totals.grad_norms
        memory = {"memory/train_gb": total(peak_memory_gb(), dist.ReduceOp.MAX)} if self._device == "cuda" else {}
        return memory | {
            "mstep/nll": steps * total(float(totals.nll)) / count,
            "mstep/kl": steps * total(float(totals.kl)) / count,
            "mstep/grad_norm": sum(norms) / max(1, len(norms)),
            "mstep/optimizer_steps": float(len(norms)),
            "mstep/rows": float(totals.rows),
            "time/mstep_s": seconds,
            "util/train": totals.busy_s / max(seconds, 1e-9),
        }


def pad(rows: Rows) -> Rows:
    """As many rows as the rank that has most of them, by copies of the last one with weight zero.

    ValueError if this rank has none: a group must hold at least one trajectory per rank.
    """
    if len(rows) == 0:
        raise ValueError("a group holds fewer trajectories than there are ranks")
    missing = int(total(float(len(rows)), dist.ReduceOp.MAX)) - len(rows)
    if missing == 0:
        return rows
    last = [len(rows) - 1] * missing
    copies = Rows(
        rows.states[last],
        None if rows.targets is None else rows.targets[last],
        tuple(rows.conditions[-1] for _ in last),
        torch.zeros(missing, dtype=torch.float64),
        torch.zeros(missing, dtype=torch.bool),
    )
    return rows + copies


def total(value: float, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> float:
    """The value reduced over the ranks (itself where there is one process only)."""
    if not dist.is_initialized():
        return value
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, op)
    return float(tensor)


def _rank_and_world() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
