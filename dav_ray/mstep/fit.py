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
from dav_ray.diffusion.exact import against_reference
from dav_ray.diffusion.noise import generator
from dav_ray.errors import RunError
from dav_ray.mstep import registry
from dav_ray.mstep.objective import Rows, accumulate, batches, choose_steps
from dav_ray.mstep.options import MStep, batch_of_rank

LEAST_SCALE = 1e-6  # of a float16 loss: what is not finite at this one is not so because of its scale


@dataclass
class Totals:
    """Sums over a round; `rows` over all ranks, the others of this rank."""

    rows: int = 0  # accepted rows of the first epoch, padding excluded
    transitions: int = 0
    nll: Tensor | float = 0.0
    kl: Tensor | float = 0.0
    exact_kl: Tensor | float = 0.0  # the same in float32, of `measured` transitions alone
    measured: int = 0
    grad_norms: list[float] = field(default_factory=list)  # before clipping, one per optimizer step
    skipped: int = 0  # steps that were not taken: the loss' scale was too large for float16
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
        # a step that draws nothing has no density, and nothing to be fitted
        self._fitted = torch.tensor([t for t in range(1, diffusion.steps + 1) if not diffusion.deterministic(t)])
        self._objective = registry.build(config.objective, config.args)
        self.scaler = torch.amp.GradScaler(device, enabled=config.precision == "float16")
        # what is rounded compares policy and reference in float32, a few transitions at a time
        self._rounded = config.kl > 0 and diffusion.rounded

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
        chosen = self._chosen(rows, key)
        # one number longer than the search's keys (seed, round, trajectory, t, copy): no stream serves twice
        order = generator(self._seed, *key, rank, 0)
        size = batch_of_rank(self._config, world)
        start = time.monotonic()
        for index, t in batches(rows, self._diffusion.steps, size, order, chosen):
            self._step(rows, index, t, totals)
        totals.busy_s += time.monotonic() - start

    def _chosen(self, rows: Rows, key: tuple[int, int, int]) -> Tensor | None:
        """The steps [n, k] of each trajectory that this epoch fits, `mstep.steps` of those that are fitted; None where
        it is all T. They are the trajectory's own, whatever rank and group it is in."""
        fitted, num = self._fitted, self._config.steps
        if num is None or num >= len(fitted):
            return None if len(fitted) == self._diffusion.steps else fitted.expand(len(rows), -1)
        round, epoch, _ = key
        # one number longer than the key of the order
        streams = [generator(self._seed, round, epoch, number, 0, 0, 0) for number in rows.numbers]
        return fitted[torch.stack([choose_steps(len(fitted), num, stream) for stream in streams]) - 1]

    def _step(self, rows: Rows, index: Tensor, t: Tensor, totals: Totals) -> None:
        real = total(float(rows.real[index].sum()))
        if real == 0:
            return  # the same on every rank
        _, world = _rank_and_world()
        if self._rounded:
            few = max(1, self._config.kl_measured // world)
            self._measure(rows, index[:few], t[:few], totals)
        self.optimizer.zero_grad(set_to_none=True)
        # DDP averages over ranks: world / real makes it the mean over the real transitions, the rest the sum over t
        nll, kl = accumulate(
            self._diffusion,
            rows,
            index,
            t,
            kl=self._config.kl,
            scale=len(self._fitted) * world / real,
            micro_batch=self._config.micro_batch,
            objective=self._objective,
            backward=lambda loss: self.scaler.scale(loss).backward(),
            defer=self._defer,
        )
        totals.nll += nll
        totals.kl += kl
        totals.transitions += int(rows.real[index].sum())
        self.scaler.unscale_(self.optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self._config.max_grad_norm))
        if self._stepped(norm):
            totals.grad_norms.append(norm)
        else:
            totals.skipped += 1

    def _stepped(self, norm: float) -> bool:
        """Take the optimizer's step, the same on every rank. With float16 one that is not finite is not taken, and the
        loss is scaled by half from then on. RunError where no scale helps."""
        before = self.scaler.get_scale()
        if not math.isfinite(norm) and (not self.scaler.is_enabled() or before < LEAST_SCALE):
            raise RunError("train", "the gradient is not finite")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return self.scaler.get_scale() >= before

    def _measure(self, rows: Rows, index: Tensor, t: Tensor, totals: Totals) -> None:
        """Add up the KL to the pretrained model of some transitions, in float32."""
        batch = rows.transitions(index, t)
        policy, pretrained = against_reference(self._diffusion, batch.x_t, batch.t, batch.conditions)
        kl = policy.kl(pretrained).double()
        totals.exact_kl += (rows.weights[index].to(kl.device) * kl).sum()
        totals.measured += int(rows.real[index].sum())

    def _metrics(self, totals: Totals, seconds: float) -> dict[str, float]:
        count = max(1.0, total(float(totals.transitions)))
        steps = len(self._fitted)
        norms = totals.grad_norms
        clipped = sum(norm > self._config.max_grad_norm for norm in norms)
        memory = {"memory/train_gb": total(peak_memory_gb(), dist.ReduceOp.MAX)} if self._device == "cuda" else {}
        half = {"mstep/skipped_steps": float(totals.skipped)} if self.scaler.is_enabled() else {}
        if norms or not totals.skipped:
            half["mstep/grad_norm"] = sum(norms) / max(1, len(norms))
        return (
            memory
            | half
            | {
                "mstep/nll": steps * total(float(totals.nll)) / count,
                **self._kl(totals, steps * total(float(totals.kl)) / count),
                "mstep/optimizer_steps": float(len(norms)),
                "mstep/clipped": clipped / max(1, len(norms)),
                "mstep/rows": float(totals.rows),
                "time/mstep_s": seconds,
                "util/train": totals.busy_s / max(seconds, 1e-9),
            }
        )

    def _kl(self, totals: Totals, summed: float) -> dict[str, float]:
        """mstep/kl, and with half precision how far from it the one is that the objective held. summed: that one."""
        if not self._rounded:
            return {"mstep/kl": summed}
        exact = len(self._fitted) * total(float(totals.exact_kl)) / max(1.0, total(float(totals.measured)))
        return {"mstep/kl": exact, "mstep/kl_noise": abs(summed - exact)}


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
        rows.numbers[-1:] * missing,
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
