"""Pretraining of masked models with MDLM's objective (arXiv 2406.07524, eq. 10), on one process or several; no Ray.

Initial weights, split, data order and noise are keyed by (seed, what for, step or row): an interrupted training that
goes on gives the weights of an uninterrupted one, and every number of workers trains on the same batches.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.nn.utils import clip_grad_norm_

from dav_ray.diffusion.masked.alphabet import Alphabet
from dav_ray.diffusion.masked.dilated_cnn import DilatedCNN
from dav_ray.diffusion.masked.elbo import TIME_MIN, nelbo
from dav_ray.diffusion.masked.model import MaskedDiffusion, files
from dav_ray.diffusion.noise import Streams, generator

CLIP = 1.0  # norm of the gradient
CLASS_DROPOUT = 0.1  # how often a row's class is withheld, so that there is a model without classes to guide against
DRAWS = 8  # stratified times per held-out row
_SPLIT, _ORDER, _NOISE, _HELD_OUT = range(4)


@dataclass(frozen=True)
class Rows:
    """tokens [N, L] uint8; labels [N] int64 in 0..classes-1 for a class-conditional model."""

    tokens: np.ndarray
    labels: np.ndarray | None = None


@dataclass(frozen=True)
class Settings:
    """What the weights depend on beside the rows. The rate is constant after `warmup` steps, so that a training can be
    made longer; weight decay is 0, as in MDLM."""

    alphabet: str
    length: int
    classes: int = 0
    hidden: int = 128
    stacks: int = 4
    kernel: int = 9
    time_conditioning: bool = False
    batch: int = 512
    learning_rate: float = 3e-4
    warmup: int = 500
    ema: float = 0.999
    seed: int = 0


@dataclass(frozen=True)
class HeldOut:
    """Mean over rows of the bound on bits per token, its standard error, and the perplexity 2^bits."""

    bits: float
    error: float
    rows: int

    @property
    def perplexity(self) -> float:
        return 2**self.bits


def split(num: int, held_out: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and `held_out` rows to measure with, both in the data's order; every row is in one of them."""
    shuffled = np.random.default_rng((seed, _SPLIT, 0, 0)).permutation(num)
    return np.sort(shuffled[held_out:]), np.sort(shuffled[:held_out])


def batch_places(seed: int, step: int, batch: int, num: int) -> np.ndarray:
    """Which of `num` rows step number `step` (from 0) trains on, [batch]: every epoch is a permutation of its own."""
    places = np.arange(step * batch, (step + 1) * batch)
    epochs = places // num
    return np.concatenate([_epoch(seed, int(e), num)[places[epochs == e] % num] for e in np.unique(epochs)])


@functools.lru_cache(maxsize=2)  # a batch may span two epochs
def _epoch(seed: int, epoch: int, num: int) -> np.ndarray:
    return np.random.default_rng((seed, _ORDER, epoch, 0)).permutation(num)


def batch_times(u: Tensor, num: int) -> Tensor:
    """Antithetic times (u + i/num) mod 1 of a batch, [num] in [TIME_MIN, 1]; u a uniform scalar."""
    return TIME_MIN + (1 - TIME_MIN) * ((u + torch.arange(num, dtype=torch.float64) / num) % 1)


class Pretrainer:
    """`model`: the weights that are trained; `average`: their exponential moving average; `step`: updates so far.

    rank, world: this process's share of every batch, rows rank, rank + world, ...; wrap(module): makes the module
    average its gradients over processes (DistributedDataParallel).
    """

    def __init__(
        self,
        settings: Settings,
        rows: Rows,
        train: np.ndarray,
        *,
        rank: int = 0,
        world: int = 1,
        device: str | torch.device = "cpu",
        wrap: Callable[[Any], Any] | None = None,
    ) -> None:
        self.settings, self.step = settings, 0
        self.rank, self.world = rank, world
        self._rows, self._train, self._device = rows, train, torch.device(device)
        self.model = _build(settings, self._device)
        self.average = _build(settings, self._device)
        self._names = [n for n, _ in self.model.trainable().named_parameters() if n not in files.FIXED]
        self._trained = [self.model.trainable().get_parameter(name).requires_grad_() for name in self._names]
        self._averaged = [self.average.trainable().get_parameter(name) for name in self._names]
        self._optimizer = torch.optim.AdamW(self._trained, lr=settings.learning_rate, weight_decay=0.0)
        if wrap is not None:
            self.model.parallelise(wrap)

    def train_step(self) -> Tensor:
        """One update; the loss of this process's rows: nats per token, a scalar on the device."""
        settings, mine = self.settings, slice(self.rank, None, self.world)
        noise = generator(settings.seed, _NOISE, self.step, 0)
        times = batch_times(torch.rand((), generator=noise, dtype=torch.float64), settings.batch)
        u = torch.rand(settings.batch, settings.length, generator=noise)
        withheld = torch.rand(settings.batch, generator=noise) < CLASS_DROPOUT
        places = self._train[batch_places(settings.seed, self.step, settings.batch, len(self._train))[mine]]
        tokens = torch.from_numpy(self._rows.tokens[places]).long().to(self._device)
        labels = self._labels(places, withheld[mine])

        def log_probs(x: Tensor, time: Tensor) -> Tensor:
            return self.model.log_probs(x, labels, time)

        loss = nelbo(log_probs, tokens, times[mine], u[mine], self.model.alphabet.mask).mean() / settings.length
        self._optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(self._trained, CLIP)
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(1.0, (self.step + 1) / max(1, settings.warmup))
        self._optimizer.step()
        self.step += 1
        self._follow()
        return loss.detach()

    def measure(self, places: np.ndarray) -> HeldOut:
        """The averaged weights on rows `places`, shared out over all processes, each of which gets the answer."""
        mine = places[self.rank :: self.world]
        bits = held_out_bits(self.average, self._rows, mine, self.settings.seed)
        num, total, squares = self.sum_over_ranks(
            torch.stack([torch.tensor(len(bits)).double(), bits.sum(), bits.square().sum()])
        ).tolist()
        variance = max(0.0, squares - total**2 / num) / max(1.0, num - 1)
        return HeldOut(total / num, math.sqrt(variance / num), int(num))

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        if self.world > 1:
            values = values.to(self._device)
            distributed.all_reduce(values)
        return values.cpu()

    def state(self) -> bytes:
        """Weights, averages, moments and step, as safetensors."""
        from safetensors.torch import save

        tensors = {"step": torch.tensor(self.step)}
        for name, trained, averaged in zip(self._names, self._trained, self._averaged, strict=True):
            moments = self._optimizer.state[trained]
            tensors |= {f"model.{name}": trained.detach(), f"average.{name}": averaged.detach()}
            tensors |= {f"{moment}.{name}": moments[moment] for moment in ("exp_avg", "exp_avg_sq")}
        return save(tensors)

    @torch.no_grad()
    def restore(self, state: bytes) -> None:
        """Go on from what `state` gave; the settings must be the same."""
        from safetensors.torch import load

        tensors = load(state)
        self.step = int(tensors["step"])
        for name, trained, averaged in zip(self._names, self._trained, self._averaged, strict=True):
            trained.copy_(tensors[f"model.{name}"])
            averaged.copy_(tensors[f"average.{name}"])
            self._optimizer.state[trained] = {
                "step": torch.tensor(float(self.step)),
                "exp_avg": tensors[f"exp_avg.{name}"].to(self._device),
                "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(self._device),
            }

    def write(self, folder: Path, *, half: bool = False) -> None:
        """The averaged weights, as `MaskedDiffusion.from_checkpoint` reads them; half: in float16."""
        s = self.settings
        kept = files.Settings(Alphabet(s.alphabet), s.length, s.classes, s.time_conditioning)
        files.write(folder, self.average.trainable(), kept, half=half)

    @torch.no_grad()
    def _follow(self) -> None:
        """average <- d average + (1 - d) weights; d starts low, as in MDLM, lest the random start be remembered."""
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        for averaged, trained in zip(self._averaged, self._trained, strict=True):
            averaged.lerp_(trained, 1 - decay)

    def _labels(self, places: np.ndarray, withheld: Tensor) -> Tensor | None:
        if self._rows.labels is None:
            return None
        labels = torch.from_numpy(self._rows.labels[places])
        return labels.masked_fill(withheld, self.settings.classes).to(self._device)


def held_out_bits(
    diffusion: MaskedDiffusion, rows: Rows, places: np.ndarray, seed: int, *, draws: int = DRAWS, batch: int = 256
) -> Tensor:
    """The bound on bits per token of each of the rows `places`, [n] float64, under the pretrained model.

    A row's times and masks depend on the seed and the row alone, so that a curve is not blurred by new ones.
    """
    found = [torch.zeros(0, dtype=torch.float64)]
    for start in range(0, len(places), batch):
        part = places[start : start + batch]
        rng = Streams([generator(seed, _HELD_OUT, int(place), 0) for place in part])
        conditions = [""] * len(part) if rows.labels is None else [f"class={label}" for label in rows.labels[part]]
        bound = diffusion.elbo(torch.from_numpy(rows.tokens[part]), conditions, rng, draws)
        found.append(-bound / (diffusion.length * math.log(2)))
    return torch.cat(found)


def _build(settings: Settings, device: torch.device) -> MaskedDiffusion:
    """The untrained model, its weights keyed by the seed."""
    alphabet, sizes = Alphabet(settings.alphabet), (settings.hidden, settings.stacks, settings.kernel)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        backbone = DilatedCNN(alphabet.mask + 1, *sizes, classes=settings.classes)
    return MaskedDiffusion(
        backbone,
        alphabet=alphabet,
        length=settings.length,
        classes=settings.classes,
        time_conditioned=settings.time_conditioning,
        micro_batch=settings.batch,
        device=device,
    )
