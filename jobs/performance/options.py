"""What each part of `jobs/benchmark.py` takes and returns."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.tables import Table


@dataclass(frozen=True)
class Options:
    """workloads: names of `jobs.performance.workloads`; turns: how often the contenders take turns; out: folder for
    models, runs and results."""

    workloads: Sequence[str]
    turns: int
    device: str
    out: Path


@dataclass(frozen=True)
class Found:
    """measured: dataclasses, as they go to benchmark.json."""

    tables: Sequence[Table]
    measured: Sequence[Any]


def measure_each(measure: Callable[[str, Options], Any], options: Options) -> list[Any]:
    """What `measure` gives for every workload, printed on stderr at once, as each takes minutes."""
    measured = []
    for name in options.workloads:
        measured.append(measure(name, options))
        print(measured[-1], file=sys.stderr, flush=True)
    return measured
