"""A whole run of one family, from the command line: two rounds through Ray, and its samples drawn again."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

import dav_ray
from dav_ray.diffusion.noise import PipelineNoise
from dav_ray.diffusion.sampling import ancestral
from jobs.families.measured import Run
from tests.support.pipelines.cases import Case
from tests.support.runs import recipe

ROUNDS = 2
SETTINGS = {
    "rounds": ROUNDS,
    "reward": {"kind": "brightness"},
    # samples have to move by more than the rounding of stored pictures
    "mstep": {"batch_size": 4, "epochs": 4, "learning_rate": 0.02, "lora": {"rank": 4}},
    "evaluate": {"samples": 4, "batch": 4, "kl_samples": 2, "grid": 4},
    "roles": {
        "search": {"replicas": 1, "cpus": 0.2},
        "reward": {"replicas": 1, "cpus": 0.1},
        "train": {"replicas": 1, "cpus": 0.2},
    },
}
SEARCH = {"candidates": 3, "alpha": 0.01, "trajectories": 6, "chunk": 3}


class RunFailed(Exception):
    """A run that should have ended well."""


def whole_run(case: Case, folder: Path) -> Run:
    """The folder gets the pipeline, the recipe and the run directory. RunFailed if it does."""
    seconds, run = folder / "seconds", folder / "run"
    if not seconds.exists():
        seconds.write_text(str(_ran(case, folder)))
    rows = pq.read_table(run / f"evaluate/round-{ROUNDS:04d}.parquet").to_pylist()
    stored = np.stack([np.array(Image.open(io.BytesIO(row["image"]))) for row in rows]).astype(int)
    again, before = (_drawn(case, dav_ray.load(str(run), version), rows) for version in (None, 0))
    return Run(float(seconds.read_text()), int(np.abs(stored - again).max()), int(np.abs(stored - before).max()))


def _ran(case: Case, folder: Path) -> float:
    """Its seconds, from the command to its end."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    case.tiny(folder / "tokenizers").save_pretrained(folder / "pipeline")
    sections = case.recipe("pipeline")
    sections["search"] |= SEARCH
    file = recipe(folder, **{"prompts": None, **SETTINGS, **sections})
    start = time.monotonic()
    command = [sys.executable, "-m", "dav_ray", "run", str(file), "--run-dir", str(folder / "run")]
    if code := subprocess.run(command, stdout=sys.stderr).returncode:
        raise RunFailed(f"the run ended with exit code {code}; what it said stands above")
    return time.monotonic() - start


@torch.no_grad()
def _drawn(case: Case, pipe: Any, rows: list[dict[str, Any]]) -> np.ndarray:
    """The pictures [N, H, W, 3] of the seeds and prompts of an evaluation's rows, 0 to 255."""
    model, prompts = case.sampler(pipe), [row["condition"] for row in rows]
    x_0 = ancestral(model, prompts, PipelineNoise([row["seed"] for row in rows]))[-1]
    return (255 * model.decode(x_0, prompts)).round().int().permute(0, 2, 3, 1).numpy()
