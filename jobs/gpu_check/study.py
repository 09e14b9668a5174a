"""What one CUDA GPU does with a recipe: time per evaluation, memory and samples per second by precision, then a whole
run whose roles share the card.

    python jobs/gpu_check [--recipe digits] [--out runs/gpu_check] [--rounds 2] [--batch 32] [key.sub=value ...]

Tables are Markdown. Exit code 2 where there is no CUDA GPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dav_ray.config.build import build, strategy
from dav_ray.config.partition import round_prompts
from dav_ray.config.recipe.load import load
from dav_ray.config.schema import Config
from dav_ray.diffusion.base import Diffusion
from dav_ray.diffusion.device import DTYPES, peak_memory_gb, quiet
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.mstep.fit import Fitter
from dav_ray.report.table import read_metrics
from dav_ray.rewards import registry
from dav_ray.rewards.base import local_scorer
from dav_ray.run_dir import shards
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.types import Chunk
from jobs.performance.timing import now
from jobs.tables import Table

REPEATS = 10
SHARED = ("search.gpus=0.4", "reward.gpus=0.2", "train.gpus=0.4", "search.replicas=1", "train.replicas=1")


@dataclass(frozen=True)
class Measured:
    """One precision on one device; memory in GB, the most that tensors held."""

    dtype: str
    evaluation_s: float  # one guided evaluation of a whole batch
    search_s: float  # of one chunk
    samples_per_s: float  # accepted, per second of search
    search_gb: float
    train_s: float  # one round of the M-step over the chunk
    train_gb: float


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_check"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    given, overrides = parser.parse_known_args(words)
    if not torch.cuda.is_available():
        print("gpu_check: torch sees no CUDA GPU; allowed: one, and torch built for CUDA", file=sys.stderr)
        return 2
    quiet()
    measured = [measure(given.recipe, overrides, "cuda", dtype, given.batch) for dtype in DTYPES]
    print(table(torch.cuda.get_device_name(), given.batch, measured).markdown(), flush=True)
    shared = run(given.recipe, given.out, ["model.dtype=bfloat16", f"rounds={given.rounds}", *overrides])
    print(shared.markdown())
    return 0


def measure(recipe: str, overrides: Sequence[str], device: str, dtype: str, batch: int) -> Measured:
    """A batch of the recipe's prompts: one evaluation, the search of one chunk, and the M-step on what it found."""
    config = load(recipe, [*overrides, f"model.dtype={dtype}"]).config
    prompts = tuple(round_prompts(config.prompts, 1, batch, together=False))
    chunk = Chunk(config.seed, 1, 0, 0, tuple(range(batch)), prompts)
    diffusion = build(config, device=device)
    evaluation_s = time_evaluation(diffusion, chunk, device)
    forget_peak(device)
    start = now(device)
    found = search(config, diffusion, chunk, device)
    search_s, search_gb = now(device) - start, peak_memory_gb()
    rows = shards.to_rows(shards.to_table(chunk, found), dict.fromkeys(chunk.trajectories, 1.0))
    forget_peak(device)
    start = now(device)
    Fitter(diffusion, config.mstep, config.seed, device=device).fit(1, [rows])
    train_s = now(device) - start
    return Measured(dtype, evaluation_s, search_s, batch / search_s, search_gb, train_s, peak_memory_gb())


def time_evaluation(diffusion: Diffusion, chunk: Chunk, device: str) -> float:
    """Seconds of one guided evaluation of the whole batch, without gradient; the first one is not counted."""
    x = diffusion.prior(chunk.conditions, noise(chunk).at(diffusion.steps))
    with torch.no_grad():
        diffusion.predict(x, diffusion.steps, chunk.conditions)
        start = now(device)
        for _ in range(REPEATS):
            diffusion.predict(x, diffusion.steps, chunk.conditions)
        return (now(device) - start) / REPEATS


def search(config: Config, diffusion: Diffusion, chunk: Chunk, device: str) -> Any:
    """The chunk's `Trajectories`, rewards in this process."""
    rewards = [(r.label, r.weight, registry.build(r.kind, dict(r.args), device)) for r in config.reward]
    found = strategy(config.search, blend=config.mstep.candidates == "all", complete=config.mstep.target == "completed")
    return found(diffusion, local_scorer(rewards), chunk.conditions, noise(chunk))


def noise(chunk: Chunk) -> KeyedNoise:
    return KeyedNoise(chunk.seed, chunk.round, chunk.trajectories)


def forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def table(name: str, batch: int, measured: Sequence[Measured]) -> Table:
    header = ("dtype", "one evaluation of the batch", "search", "samples/s", "search, peak", "M-step", "M-step, peak")
    rows = [
        (
            m.dtype,
            f"{1000 * m.evaluation_s:.1f} ms",
            f"{m.search_s:.2f} s",
            f"{m.samples_per_s:.1f}",
            f"{m.search_gb:.2f} GB",
            f"{m.train_s:.2f} s",
            f"{m.train_gb:.2f} GB",
        )
        for m in measured
    ]
    return Table(f"{name}, torch {torch.__version__}, batch {batch}", header, tuple(rows))


def run(recipe: str, out: Path, overrides: Sequence[str]) -> Table:
    """A whole run whose roles share the card, as a table of its rounds. SystemExit with its code if it fails."""
    command = [sys.executable, "-m", "dav_ray", "run", recipe, *(f"roles.{word}" for word in SHARED), *overrides]
    start = time.monotonic()
    done = subprocess.run([*command, "--run-dir", str(out), "--address", "local"])
    if done.returncode:
        raise SystemExit(done.returncode)
    return rounds(out, time.monotonic() - start)


def rounds(run_dir: Path, seconds: float) -> Table:
    metrics = read_metrics(open_storage(str(run_dir.resolve())))
    header = ("round", "reward", "samples/s", "search, peak", "M-step", "M-step, peak")
    rows: list[tuple[str, ...]] = []
    for number in sorted({number for number, role in metrics if role == "mstep"}):
        found, fitted = metrics[number, "search"], metrics[number, "mstep"]
        rows.append(
            (
                str(number),
                f"{found['reward/mean']:.4g}",
                f"{found['search/samples_per_s']:.1f}",
                f"{found.get('memory/search_gb', 0):.2f} GB",
                f"{fitted['time/mstep_s']:.1f} s",
                f"{fitted.get('memory/train_gb', 0):.2f} GB",
            )
        )
    return Table(f"search 0.4, reward 0.2, train 0.4 of the card: {seconds:.0f} s in all", header, tuple(rows))
