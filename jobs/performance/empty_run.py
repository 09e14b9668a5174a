"""An embedded run whose rounds have one trajectory of two steps and no candidates to choose from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.performance.workloads import empty_recipe


@dataclass(frozen=True)
class EmptyRun:
    first_s: float  # from the command to the first accepted sample
    took_s: float  # in all
    rounds_s: tuple[float, ...]


def empty_run(out: Path, rounds: int) -> EmptyRun:
    folder = out.resolve() / f"empty-{time.time_ns()}"
    recipe, begun = empty_recipe(folder, rounds), time.time()
    words = [sys.executable, "-m", "dav_ray", "run", str(recipe), "--run-dir", str(folder / "run")]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"})
    took = time.time() - begun
    first = next(event["time"] for event in _lines(folder / "run/events.jsonl") if event["event"] == "chunk_committed")
    seconds = [line["time/round_s"] for line in _lines(folder / "run/metrics.jsonl") if "time/round_s" in line]
    return EmptyRun(first - begun, took, tuple(seconds))


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]
