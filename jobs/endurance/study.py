"""A run of many small rounds, watched: does anything grow with the rounds that are done? Tables on stdout, as Markdown.

    python jobs/endurance [--rounds 300] [--overlap stream] [--out runs/long] [--write-readme] [--stored]
                          [KEY.SUB=VALUE ...]

A masked model with random weights and a reward that costs nothing, so that what is seen is the program's own: memory,
threads and open files of the driver and of every actor, the object store, the files in the run directory, seconds per
round, CPU seconds per round. Slopes are least squares over the rounds after the first `--settle` ones, per 100 rounds,
with a standard error. Exit code 1 if the run fails. `samples.jsonl` and `long_run.json` lie beside the run directory.
`--write-readme` writes the tables into the page beside this file, `--stored` measures nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from dav_ray.diffusion.masked.alphabet import Alphabet
from dav_ray.diffusion.masked.dilated_cnn import DilatedCNN
from dav_ray.diffusion.masked.files import Settings, write
from dav_ray.report.table import read_metrics
from dav_ray.run_dir.storage.uri import open_storage
from jobs.endurance.probe import probe, store_mb
from jobs.tables import Page, Table, add_page_options

LENGTH = 24
WINDOW = 20  # rounds over which seconds per round are taken, the median
PAGE = Page(Path(__file__).parent)

Sample = dict[str, Any]


def recipe(folder: Path, rounds: int, overlap: str) -> Path:
    """A recipe of rounds that take a second or two."""
    torch.manual_seed(0)
    write(folder / "model", DilatedCNN(5, 8, 1, 5), Settings(Alphabet.of("dna"), LENGTH, 0, False))
    settings: dict[str, Any] = {
        "rounds": rounds,
        "overlap": overlap,
        "model": {"kind": "masked", "path": str((folder / "model").absolute())},
        "reward": {"kind": "gc_content"},
        "search": {"candidates": 2, "alpha": 0.02, "steps": 4, "trajectories": 12, "chunk": 4},
        "mstep": {"learning_rate": 1e-4, "batch_size": 16, "lora": {"targets": ["convs"]}},
        "evaluate": {"samples": 8, "batch": 8, "kl_samples": 0, "elbo_draws": 0},
        "roles": {
            "search": {"replicas": 1, "cpus": 0.2},
            "reward": {"replicas": 1, "cpus": 0.1},
            "train": {"replicas": 1, "cpus": 0.2},
        },
    }
    path = folder / "long.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def watch(command: Sequence[str], run_dir: Path, samples: Path, every_s: float) -> None:
    """Start the run and write down, now and then, what it holds. Raises SystemExit(1) if the run fails."""
    run = subprocess.Popen([sys.executable, "-m", "dav_ray", "run", *command], stdout=sys.stderr)
    with open(samples, "w", encoding="utf-8") as file:
        while run.poll() is None:
            file.write(json.dumps(sample(run.pid, run_dir)) + "\n")
            file.flush()
            time.sleep(every_s)
    if run.returncode != 0:
        raise SystemExit(1)


def sample(driver: int, run_dir: Path) -> Sample:
    rounds = rounds_done(run_dir)
    files = sum(len(names) for _, _, names in os.walk(run_dir))
    return {
        "time": time.time(),
        "rounds": rounds,
        "files": files,
        "store_mb": store_mb(driver),
        "processes": probe(driver),
    }


def rounds_done(run_dir: Path) -> int:
    manifest = run_dir / "manifest.json"
    return json.loads(manifest.read_text())["closed"] if manifest.exists() else 0


def slope(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(slope, its standard error), least squares; nan where there are too few points."""
    if len(points) < 3:
        return float("nan"), float("nan")
    x, y = np.array(points).T
    x = x - x.mean()
    rise = float((x @ y) / (x @ x))
    rest = y - y.mean() - rise * x
    return rise, float(np.sqrt((rest @ rest) / (len(x) - 2) / (x @ x)))


def series(samples: Sequence[Sample], settle: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """By name (`memory_mb SearchActor`, `files`, ...): (hundreds of rounds, value), after the first `settle` rounds and
    before the last one. Only processes that were there all the time: Ray's idle workers come and go."""
    later = [s for s in samples if settle <= s["rounds"] < rounds]
    kinds = set.intersection(*(set(s["processes"]) for s in later)) if later else set()
    found: dict[str, list[tuple[float, float]]] = {}
    for s in later:
        values = {"files": s["files"], "store_mb": s["store_mb"]}
        values |= {f"{what} {k}": s["processes"][k][what] for k in sorted(kinds) for what in s["processes"][k]}
        values |= {"memory_mb in all": sum(held["memory_mb"] for held in s["processes"].values())}
        for name, value in values.items():
            if value is not None:
                found.setdefault(name, []).append((s["rounds"] / 100, value))
    return found


def round_seconds(run_dir: Path, rounds: Sequence[int]) -> dict[int, float]:
    """The median time of the WINDOW rounds that end with each of `rounds`."""
    metrics = read_metrics(open_storage(str(run_dir)))
    times = {round: m["time/round_s"] for (round, role), m in metrics.items() if role == "evaluate" and round > 0}
    windows = {end: [times[r] for r in range(end - WINDOW + 1, end + 1) if r in times] for end in rounds}
    return {end: statistics.median(window) for end, window in windows.items() if window}


def cpu_seconds(samples: Sequence[Sample], settle: int, rounds: int) -> dict[str, list[float]]:
    """By kind of process, and `in all`: CPU seconds per round in the first and in the second half of what counts, where
    it takes any. Other work on the machine changes these less than it does the clock's."""
    later = [s for s in samples if settle <= s["rounds"] < rounds]
    kinds = set.intersection(*(set(s["processes"]) for s in later)) if later else set()
    ends = [later[0], later[len(later) // 2], later[-1]] if later else []
    found: dict[str, list[float]] = {}
    for kind in sorted(kinds):
        used = [(s["rounds"], s["processes"][kind]["cpu_s"]) for s in ends]
        found[kind] = [(b[1] - a[1]) / max(b[0] - a[0], 1) for a, b in itertools.pairwise(used)]
    found["in all"] = [sum(halves) for halves in zip(*found.values(), strict=True)]
    return {kind: halves for kind, halves in found.items() if max(halves, default=0.0) >= 0.005}


def summarise(samples: Sequence[Sample], run_dir: Path, rounds: int, settle: int) -> dict[str, Any]:
    rows = {}
    for name, points in series(samples, settle, rounds).items():
        rise, error = slope(points)
        rows[name] = {"first": points[0][1], "last": points[-1][1], "slope": rise, "error": error}
    return {
        "rounds": rounds,
        "settle": settle,
        "slopes": rows,
        "seconds": round_seconds(run_dir, [settle, rounds]),
        "cpu_seconds": cpu_seconds(samples, settle, rounds),
    }


def tables(found: dict[str, Any]) -> list[Table]:
    settle, rounds = found["settle"], found["rounds"]
    header = ("", f"at round {settle}", f"at round {rounds}", "per 100 rounds", "standard error")
    cells = tuple(
        (name, f"{row['first']:.1f}", f"{row['last']:.1f}", f"{row['slope']:+.2f}", f"{row['error']:.2f}")
        for name, row in found["slopes"].items()
        if not name.startswith(("processes", "cpu_s"))
    )
    seconds = tuple((str(end), f"{value:.2f}") for end, value in found["seconds"].items())
    cpu = tuple((kind, *(f"{value:.3f}" for value in halves)) for kind, halves in found["cpu_seconds"].items())
    middle = (settle + rounds) // 2
    return [
        Table("What a run holds", header, cells),
        Table("CPU seconds per round", ("", f"rounds {settle} to {middle}", f"to {rounds}"), cpu),
        Table(f"Seconds per round, median of the {WINDOW} rounds that end there", ("round", "seconds"), seconds),
    ]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY.SUB=VALUE")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--settle", type=int, default=50)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between samples")
    parser.add_argument("--overlap", choices=["none", "stream", "round"], default="stream")
    parser.add_argument("--out", type=Path, default=Path("runs/long"))
    add_page_options(parser)
    words = sys.argv[1:] if words is None else words
    given = parser.parse_args(words)
    if given.stored:
        return PAGE.show_stored(write=given.write_readme)
    given.out.mkdir(parents=True, exist_ok=True)
    run_dir, samples = given.out / "run", given.out / "samples.jsonl"
    command = [str(recipe(given.out, given.rounds, given.overlap)), *given.overrides, "--run-dir", str(run_dir)]
    watch(command, run_dir, samples, given.every)
    lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    found = summarise(lines, run_dir, given.rounds, given.settle)
    (given.out / "long_run.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for table in tables(found):
        print(table.markdown(), flush=True)
    if given.write_readme:
        PAGE.publish(tables(found), words)
    return 0
