"""The table that ends a run: a row per round, from metrics.jsonl."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

from dav_ray.storage import Storage

Metrics = dict[str, float]


def read_metrics(storage: Storage) -> dict[tuple[int, str], Metrics]:
    """The last line of each (round, role)."""
    records = (json.loads(line) for line in storage.read_lines("metrics.jsonl"))
    return {(record["round"], record["role"]): record for record in records}


def render_rounds(storage: Storage) -> str:
    """Reward and held-out measures by round, the rise in standard deviations of the pretrained model's samples."""
    from rich.console import Console
    from rich.table import Table

    metrics = read_metrics(storage)
    rounds = sorted(round for round, role in metrics if role == "evaluate")
    if not rounds:
        return "no round was evaluated"
    base = metrics[rounds[0], "evaluate"]
    columns = _columns(base)
    table = Table(title="samples of the model without search", title_justify="left")
    for title in ("round", *columns, "searched reward"):
        table.add_column(title, justify="right")
    for round in rounds:
        row = metrics[round, "evaluate"]
        searched = metrics.get((round, "search"), {}).get("reward/mean")
        cells = [cell(row, base) for cell in columns.values()]
        table.add_row(str(round), *cells, "" if searched is None else f"{searched:.4g}")
    text = io.StringIO()
    Console(file=text, width=120).print(table)
    return text.getvalue().rstrip()


def _columns(base: Metrics) -> dict[str, Callable[[Metrics, Metrics], str]]:
    columns: dict[str, Callable[[Metrics, Metrics], str]] = {
        "reward": lambda row, _: f"{row['evaluate/reward_mean']:.4g}",
        "rise in sd": lambda row, first: _rise(row, first),
    }
    for name in base:
        if name.startswith("heldout/"):
            columns[name.removeprefix("heldout/")] = lambda row, _, name=name: f"{row[name]:.4g}"
    for name, title in (("diversity/features", "diversity"), ("diversity/within_prompt", "within prompt")):
        if base.get(name):
            columns[title] = lambda row, first, name=name: f"{row[name] / first[name]:.0%}"
    return columns


def _rise(row: Metrics, first: Metrics) -> str:
    spread = first["evaluate/reward_std"]
    return f"{(row['evaluate/reward_mean'] - first['evaluate/reward_mean']) / spread:+.2f}" if spread else ""
