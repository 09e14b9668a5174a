"""Memory and time of the M-step by micro-batch, against the doctor's estimate."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from math import ceil
from pathlib import Path
from typing import Any

import torch

from dav_ray.config.build import build
from dav_ray.config.families.table import family_of
from dav_ray.config.memory import train_memory
from dav_ray.config.model_path import model_path
from dav_ray.config.schema import Config
from dav_ray.diffusion.device import free_memory
from dav_ray.mstep.fit import Fitter
from dav_ray.mstep.objective import Rows
from dav_ray.mstep.options import MStep
from jobs.gpu_hour.record import Result
from jobs.gpu_hour.setting import Setting
from jobs.gpu_hour.steps.base import Measure, Step, cells
from jobs.performance.timing import seconds
from jobs.tables import Table

MICRO_BATCHES, TINY_MICRO_BATCHES = (1, 4, 8, 16, 32, 64), (1, 4)
KEY = "checkpointing"
PER_BATCH = 2  # micro-batches per optimizer step


def cases(setting: Setting) -> list[str]:
    """Without gradient checkpointing, and with it where there is the key."""
    sizes = TINY_MICRO_BATCHES if setting.tiny else MICRO_BATCHES
    modes = ("off", "on") if KEY in MStep.model_fields else ("off",)
    return [f"{mode}, {size}" for mode in modes for size in sizes]


class Training:
    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._mode, self._diffusion = "", None

    def measure(self, case: str) -> Result:
        mode, _, number = case.partition(", ")
        size = int(number)
        words = [f"mstep.micro_batch={size}", f"mstep.batch_size={PER_BATCH * size}"]
        if KEY in MStep.model_fields:
            words.append(f"mstep.{KEY}={mode}")
        config = self._setting.config(*words)
        diffusion = self._model(config, mode)
        groups = [_rows(diffusion, config, ceil(PER_BATCH * size / config.search.steps))]
        fitter = Fitter(diffusion, config.mstep, config.seed, device=self._setting.device)
        free_memory()
        if self._setting.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        fitter.fit(1, groups)
        took = seconds(lambda: fitter.fit(2, groups), self._setting.device)
        peak = torch.cuda.max_memory_allocated() / 1e9 if self._setting.device == "cuda" else None
        transitions = len(groups[0]) * config.search.steps
        return {"peak_gb": peak, "doctor_gb": _doctor(config), "ms": 1000 * took / transitions}

    def _model(self, config: Config, mode: str) -> Any:
        """Built anew where checkpointing changes."""
        if self._diffusion is None or self._mode != mode:
            self._diffusion = None
            free_memory()
            made: Any = build(config, device=self._setting.device, autocast=config.mstep.precision)
            if mode == "on":
                made.checkpoint()
            self._diffusion, self._mode = made, mode
        return self._diffusion


def _rows(diffusion: Any, config: Config, number: int) -> Rows:
    """Trajectories of noise."""
    states = torch.randn(number, config.search.steps + 1, *diffusion.event_shape)
    conditions = tuple(config.prompts[i % len(config.prompts)] for i in range(number))
    weights = torch.ones(number, dtype=torch.float64)
    return Rows(states, None, conditions, weights, torch.ones(number, dtype=torch.bool))


def _doctor(config: Config) -> float:
    """GB that the doctor says."""
    family = family_of(config.model)
    sizes = family.sizes(config, Path(model_path(config.model.path)))
    return train_memory(config, sizes, family.passes(config)).total / 1e9


@contextlib.contextmanager
def opened(setting: Setting) -> Iterator[Measure]:
    yield Training(setting).measure


def table(results: Mapping[str, Result]) -> Table:
    header = ("checkpointing", "micro-batch", "peak, GB", "doctor says", "ms per transition")
    rows = tuple((*case.split(", "), *cells(each, "peak_gb", "doctor_gb", "ms")) for case, each in results.items())
    return Table("M-step", header, rows)


STEP = Step("mstep", cases, opened, table)
