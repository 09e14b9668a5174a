"""The table that ends a run: a row per round, from metrics.jsonl."""

from __future__ import annotations

import io
from collections.abc import Callable

from dav_ray.run_dir.records import metric_rows
from dav_ray.run_dir.reward_columns import EVALUATED
from dav_ray.run_dir.storage.interface import Storage

Metrics = dict[str, float]
SHORT = {"heldout/kmer_correlation": "k-mers r"}
DIVERSITY = {  # shown relative to the first round
    "diversity/features": "diversity",
    "diversity/within_prompt": "within prompt",
    "diversity/edit_distance": "edit distance",
}


def read_metrics(storage: Storage) -> dict[tuple[int, str], Metrics]:
    """The last line of each (round, role)."""
    return metric_rows(storage.read_lines("metrics.jsonl"))


def render_rounds(storage: Storage) -> str:
    """Reward and held-out measures by round, the rise in standard deviations of the pretrained model's samples."""
    from rich.console import Console
    from rich.table import Table

    metrics = read_metrics(storage)
    rounds = sorted(round for round, role in metrics if role == "evaluate")
    if not rounds:
        return "no round was evaluated"
    rows = [metrics[round, "evaluate"] for round in rounds]
    columns = _columns(rows)
    table = Table(title="samples of the model without search", title_justify="left")
    searches = [metrics.get((round, "search"), {}) for round in rounds]
    searched = _search_columns(searches)
    for title in ("round", *columns, *searched):
        table.add_column(title, justify="right")
    for round, row, search in zip(rounds, rows, searches, strict=True):
        cells = [cell(row, rows[0]) for cell in columns.values()]
        table.add_row(str(round), *cells, *(_number(search, name) for name in searched.values()))
    text = io.StringIO()
    Console(file=text, width=120).print(table)
    return "\n".join([text.getvalue().rstrip(), *_alpha(searches, rows[0])])


def _search_columns(searches: list[Metrics]) -> dict[str, str]:
    """Title -> the number of the round's search. Where each step chooses: how many candidates count, of how many."""
    most = max((row["search/ess_most"] for row in searches if "search/ess_most" in row), default=1.0)
    return {"searched reward": "reward/mean", **({f"ess of {most:.3g}": "search/ess"} if most > 1 else {})}


def _alpha(searches: list[Metrics], first: Metrics) -> list[str]:
    """A line that says what alpha was, and how much of what the pretrained model's rewards differ by."""
    alpha = next((row["search/alpha"] for row in searches if "search/alpha" in row), None)
    if alpha is None:
        return []
    spread = first.get("evaluate/reward_std")
    return [f"search.alpha {alpha:.4g}" + (f": {alpha / spread:.2g} sd of the pretrained reward" if spread else "")]


def _columns(rows: list[Metrics]) -> dict[str, Callable[[Metrics, Metrics], str]]:
    """Title -> the cell of (a round's row, the first round's row); a cell without a value is empty."""
    columns: dict[str, Callable[[Metrics, Metrics], str]] = {
        "reward": lambda row, _: _number(row, "evaluate/reward_mean"),
        "rise in sd": _rise,
    }
    if any("evaluate/feasible" in row for row in rows):
        columns["feasible"] = lambda row, _: f"{row.get('evaluate/feasible', 1.0):.0%}"  # noted where it is not all
    for name in dict.fromkeys(name for row in rows for name in row if name.startswith(EVALUATED[0])):
        columns[name.removeprefix(EVALUATED[0])] = lambda row, _, name=name: _number(row, name)
    for name in dict.fromkeys(name for row in rows for name in row if name.startswith("heldout/")):
        title = SHORT.get(name) or name.removeprefix("heldout/")
        title = f"{title} (held out)" if title in columns else title
        columns[title] = lambda row, _, name=name: _number(row, name)
    for name, title in DIVERSITY.items():
        if rows[0].get(name):
            columns[title] = lambda row, first, name=name: f"{row[name] / first[name]:.0%}" if name in row else ""
    if "diversity/unique" in rows[0]:
        columns["unique"] = lambda row, _: f"{row['diversity/unique']:.0%}" if "diversity/unique" in row else ""
    return columns


def _number(row: Metrics, name: str) -> str:
    return f"{row[name]:.4g}" if name in row else ""


def _rise(row: Metrics, first: Metrics) -> str:
    """Empty where a mean is missing (no sample had a finite reward), or the first round's samples are all alike."""
    name, spread = "evaluate/reward_mean", first.get("evaluate/reward_std")
    return f"{(row[name] - first[name]) / spread:+.2f}" if spread and name in row and name in first else ""
