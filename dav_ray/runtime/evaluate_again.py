"""`dav-ray evaluate`: a policy measured again, beside round 0 on the same seeds and prompts; written into the run."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from dav_ray.config.stored import StoredRun
from dav_ray.config.which_policy import wanted_version
from dav_ray.errors import RunError
from dav_ray.evaluation.base import finite
from dav_ray.evaluation.kinds import sample_kind
from dav_ray.evaluation.measure import evaluation_chunks, rise, summarise, table_path
from dav_ray.run_dir import shards
from dav_ray.run_dir.records import RunLog
from dav_ray.runtime.inference import measuring, stored_run
from dav_ray.runtime.initial_policy import initial_name
from dav_ray.types import EvaluationChunk

WIDEST = 120
KL = "heldout/kl"
LABELS = {
    "evaluate/reward_mean": "reward",
    "evaluate/feasible": "feasible",
    KL: "KL to pretrained, nats",
    "heldout/kmer_correlation": "k-mer correlation",
}
UNSHOWN = ("evaluate/reward_std", "evaluate/samples", "evaluate/rise_sd")


@dataclass(frozen=True)
class Comparison:
    """A policy and the one that the run started from, each by metric; spreads: the latter's standard deviation of the
    samples, where a metric is their mean."""

    version: int
    metrics: dict[str, float]
    first: dict[str, float]
    spreads: dict[str, float]


def evaluate_run(run_dir: str, samples: int | None, version: str, address: str) -> None:
    """Measure a policy (best, last or its version) on `samples` fresh samples (default: evaluate.samples), write what
    came of it into the run directory, and print it beside round 0. UserError where there is no such policy."""
    stored = stored_run(run_dir)
    number = wanted_version(stored, version)
    config, kind = stored.config, sample_kind(stored.config)
    chunks = evaluation_chunks(config, number, number, config.prompts, samples)
    with measuring(stored, address) as measure:
        table = measure(chunks)
        first = stored_first(stored, chunks, table.column_names)
        again = first is None and number > 0
        if again:
            first = measure(evaluation_chunks(config, 0, 0, config.prompts, samples))
    first = table if first is None else first
    compared = compare(number, table, first, summarise(table, kind), summarise(first, kind))
    path = write(stored, compared, table, first_measured_again=again)
    print(render(compared, table.num_rows, initial_name(config)))
    print(f"written: {path}.json, {path}.parquet")


def stored_first(stored: StoredRun, chunks: Sequence[EvaluationChunk], columns: Sequence[str]) -> pa.Table | None:
    """The rows of round 0's evaluation for the same samples; None where it has not all of them, or not all measures."""
    try:
        table = shards.decode(stored.storage.read(table_path(0)))
    except (FileNotFoundError, RunError, pa.ArrowException, OSError, ValueError):
        return None
    if not {*columns} <= {*table.column_names}:
        return None
    places = {number: place for place, number in enumerate(table.column("sample").to_pylist())}
    wanted = [
        (number, seed, condition)
        for chunk in chunks
        for number, seed, condition in zip(chunk.samples, chunk.seeds, chunk.conditions, strict=True)
    ]
    if any(number not in places for number, _, _ in wanted):
        return None
    rows = table.take([places[number] for number, _, _ in wanted])
    known = zip(rows.column("seed").to_pylist(), rows.column("condition").to_pylist(), strict=True)
    return rows if list(known) == [(seed, condition) for _, seed, condition in wanted] else None


def compare(
    version: int, table: pa.Table, first_table: pa.Table, metrics: dict[str, float], first: dict[str, float]
) -> Comparison:
    spreads = {}
    for name in metrics:
        column = {"evaluate/reward_mean": "reward", "heldout/elbo": "elbo"}.get(name, name)
        if column in first_table.column_names and name != KL and len(values := finite(first_table, column)):
            spreads[name] = float(np.std(values))
    return Comparison(version, {**metrics, **rise(metrics, first)}, first, spreads)


def write(stored: StoredRun, compared: Comparison, table: pa.Table, *, first_measured_again: bool) -> str:
    """The samples as Parquet and what they measure as JSON; returns the files' path without its ending."""
    now = datetime.now(UTC)
    name = f"evaluate/again-{now:%Y%m%dT%H%M%SZ}-v{compared.version:04d}"
    record: dict[str, Any] = {
        "time": now.isoformat(timespec="seconds"),
        "version": compared.version,
        "samples": table.num_rows,
        "seed": min(table.column("seed").to_pylist()),
        "metrics": compared.metrics,
        "round_0": compared.first,
        "round_0_measured_again": first_measured_again,
    }
    stored.storage.write(f"{name}.parquet", shards.encode(table)[0])
    stored.storage.write(f"{name}.json", (json.dumps(record, indent=1) + "\n").encode())
    RunLog(stored.storage, stored.manifest.epoch).event("evaluated_again", version=compared.version, path=name)
    return f"{stored.storage.uri.rstrip('/')}/{name}"


def render(compared: Comparison, samples: int, first: str) -> str:
    """The comparison as a table that fits the terminal, at most WIDEST letters wide."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{samples} samples without search, the same seeds and prompts", title_justify="left")
    table.add_column("measure", overflow="fold")
    for title in (first, f"version {compared.version}", "difference", "in sd"):
        table.add_column(title, justify="right")
    for name in compared.metrics:
        if name not in UNSHOWN:
            table.add_row(*_cells(name, compared))
    text = io.StringIO()
    Console(file=text, width=min(WIDEST, shutil.get_terminal_size((80, 24)).columns)).print(table)
    return text.getvalue().rstrip()


def _cells(name: str, compared: Comparison) -> list[str]:
    now, before = compared.metrics[name], compared.first.get(name, 0.0 if name == KL else None)
    difference = None if before is None else now - before
    spread = compared.spreads.get(name)
    rise = "" if difference is None or not spread else f"{difference / spread:+.2f}"
    return [_label(name), _number(before), _number(now), _number(difference, "+"), rise]


def _label(name: str) -> str:
    family, _, last = name.partition("/")
    words = last.replace("_", " ")
    known = {"median": f"{words}, median", "diversity": f"diversity: {words}", "heldout": words}
    return LABELS.get(name) or known.get(family, words)


def _number(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.4g}"
