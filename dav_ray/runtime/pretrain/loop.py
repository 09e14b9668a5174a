"""The loop of pretraining: steps, held-out measurements, checkpoints; every process calls it, rank 0 writes."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dav_ray.diffusion.masked.pretrain import HeldOut, Pretrainer
from dav_ray.run_dir.storage.local import LocalStorage

CHECKPOINT, METRICS, REPORT = "checkpoint/state.safetensors", "metrics.jsonl", "report.json"
CURVE_ROWS = 1024  # held-out rows behind a point of the curve, at most; the final measurement takes all


def pretrain(trainer: Pretrainer, held_out: np.ndarray, *, steps: int, every: int, folder: Path, half: bool) -> None:
    """Train up to `steps`, going on from the folder's checkpoint if it has one. Every process calls this, rank 0
    writes: every `every` steps a line of metrics.jsonl, then a checkpoint; in the end the model, then report.json."""
    storage, lead = LocalStorage(str(folder)), trainer.rank == 0
    if storage.exists(CHECKPOINT):
        trainer.restore(storage.read(CHECKPOINT))
    # a line whose checkpoint was never written comes again
    curve = [line for line in read_curve(folder) if line["step"] <= trainer.step]
    start, losses = time.monotonic(), []
    while trainer.step < steps:
        losses.append(trainer.train_step())
        if trainer.step % every and trainer.step < steps:
            continue
        mean = trainer.sum_over_ranks(torch.stack(losses).mean()).item() / trainer.world
        seconds = (time.monotonic() - start) / len(losses)
        curve.append(_point(trainer.step, mean, trainer.measure(held_out[:CURVE_ROWS]), seconds))
        if lead:
            storage.write(METRICS, "".join(f"{json.dumps(line)}\n" for line in curve).encode())
            storage.write(CHECKPOINT, trainer.state())
        start, losses = time.monotonic(), []
    found = trainer.measure(held_out)
    if lead:
        trainer.write(folder, half=half)
        report = {"step": trainer.step, **_measured(found), "held_out_rows": found.rows, "workers": trainer.world}
        storage.write(REPORT, (json.dumps(report, indent=2) + "\n").encode())


def read_curve(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; none if there is no such file."""
    return [json.loads(line) for line in LocalStorage(str(folder)).read_lines(METRICS)]


def _point(step: int, loss: float, found: HeldOut, seconds: float) -> dict[str, Any]:
    return {"step": step, "train_bits_per_token": loss / math.log(2), **_measured(found), "seconds_per_step": seconds}


def _measured(found: HeldOut) -> dict[str, float]:
    return {
        "held_out_bits_per_token": found.bits,
        "standard_error": found.error,
        "held_out_perplexity": found.perplexity,
    }
