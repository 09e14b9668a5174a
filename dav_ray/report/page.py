"""`report.html`: what a run did, on one self-contained page (nothing is fetched when it is opened).

Headline figures and curves come from `metrics.jsonl`; the sample grid and the histogram from
`evaluate/*.parquet`: fresh samples without search, on the same seeds and prompts in every round. Round 0 is
the pretrained model.
"""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from PIL import Image
from plotly.offline import get_plotlyjs

from dav_ray.evaluation.shown_samples import CELL, THUMBNAIL, choose_columns
from dav_ray.report.charts import curves, reward_against_diversity, reward_histogram
from dav_ray.report.data import RunData, Sample, load_run, load_samples, short_name, thin
from dav_ray.report.sequences import sequence_report
from dav_ray.report.sizes import sizes_in_words
from dav_ray.run_dir.reward_columns import EVALUATED
from dav_ray.run_dir.storage.interface import Storage
from dav_ray.run_dir.storage.uri import open_storage

REPORT = "report.html"
TEMPLATE = "report.html.j2"
MAX_GRID_ROWS = 12
CRISP_BELOW = 128  # px; smaller images are enlarged by whole factors, without smoothing


@dataclass(frozen=True)
class HeadlineRow:
    """One measure, pretrained against the last evaluated round, ready to print."""

    measure: str
    pretrained: str
    last: str
    change: str


@dataclass(frozen=True)
class Cell:
    """One image of the grid; `width` in CSS px."""

    uri: str
    reward: float
    width: int
    crisp: bool


@dataclass(frozen=True)
class GridRow:
    round: int
    mean: float | None
    cells: list[Cell | None]


@dataclass(frozen=True)
class Grid:
    """Rounds as rows, the same seeds and prompts as columns; columns of one prompt stand side by side."""

    prompts: list[tuple[str, int]]  # prompt, number of columns
    rows: list[GridRow]
    rounds_hidden: int


def write_report(run_dir: str) -> str:
    """Write `report.html` into a run directory (a path or URI), finished or not, and return its full path."""
    storage = open_storage(run_dir)
    storage.write(REPORT, render(storage).encode())
    return f"{storage.uri.rstrip('/')}/{REPORT}"


def render(storage: Storage) -> str:
    """The page as HTML. Values are escaped by jinja2; plotly's own source is the only text that is not."""
    run = load_run(storage)
    over_rounds, trade_off = curves(run), reward_against_diversity(run)
    histogram = reward_histogram(run, _rewards(storage, run))
    sequences = sequence_report(storage, run) if run.sequences else None
    pairs = sequences.edit_distances if sequences else None
    distributions = [chart for chart in (trade_off, histogram, pairs) if chart is not None]
    return _template().render(
        name=storage.uri.rstrip("/").rsplit("/", 1)[-1],
        run=run,
        headline=headline(run),
        rise=reward_rise(run),
        sizes=sizes_in_words(storage, run),
        grid=None if run.sequences else sample_grid(storage, run),
        sequences=sequences,
        chart_groups=[
            ("Over the rounds", over_rounds),
            ("Reward, diversity and distribution", distributions),
        ],
        all_metrics=_all_metrics(run),
        versions=sorted((run.manifest.get("versions") or {}).items()),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        plotly_js=get_plotlyjs(),
    )


def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment.get_template(TEMPLATE)


def reward_rise(run: RunData) -> float | None:
    """Rise of the mean reward without search, in standard deviations of the pretrained model's samples."""
    return _rise(run, "evaluate/reward_mean", "evaluate/reward_std")


def _rise(run: RunData, mean_name: str, sd_name: str) -> float | None:
    mean, sd = run.series(mean_name), run.series(sd_name).get(0)
    last = run.evaluated[-1] if run.evaluated else 0
    if last == 0 or not {0, last} <= mean.keys() or not sd:
        return None
    return (mean[last] - mean[0]) / sd


def headline(run: RunData) -> list[HeadlineRow]:
    """Pretrained against the last evaluated round: reward, held-out measures (of sequences their medians too),
    diversity, KL."""
    if not run.evaluated:
        return []
    last = run.evaluated[-1]
    reward = f"Reward: {run.reward_label}"
    rows = [_reward_row(run, reward, "evaluate/reward_mean", "evaluate/reward_std", last)]
    for name in run.rewards:
        rows.append(_reward_row(run, f"Reward {name}", f"{EVALUATED[0]}{name}", f"{EVALUATED[1]}{name}", last))
    if run.sequences:
        rows.append(_difference(run, "median/reward", f"{reward}, median", last))
        if run.series("evaluate/feasible"):
            rows.append(_feasible(run, last))
    for name in run.heldout:
        label, median = f"Held out: {short_name(name)}", f"median/{name.removeprefix('heldout/')}"
        rows.append(_difference(run, name, label, last))
        if run.sequences and run.series(median):
            rows.append(_difference(run, median, f"{label}, median", last))
    for name in run.names("diversity/"):
        first, now = run.series(name).get(0), run.series(name).get(last)
        share = f"{100 * now / first:.1f} % of {run.first}" if first and now is not None and last else ""
        rows.append(_row(f"Diversity: {short_name(name)}", first, now, last, share))
    kl = run.series("heldout/kl")
    if kl:
        # 0 by definition where it was not measured
        first, now = kl.get(0, None if run.origin else 0.0), kl.get(last)
        rows.append(_row("KL to the pretrained model (nats per trajectory)", first, now, last, _signed(now)))
    return [*rows, *_search_rows(run, last)]


def _search_rows(run: RunData, last: int) -> list[HeadlineRow]:
    """How freely the last round's search chose, and its alpha."""
    ess, alpha = run.series("search/ess").get(last), run.series("search/alpha").get(last)
    deviation, rows = run.series("evaluate/reward_std").get(0), []
    if ess is not None and run.alternatives is not None:
        rows.append(HeadlineRow(f"Search: effective candidates of {run.alternatives:.3g}", "", number(ess), ""))
    if alpha is not None:
        unit = f"{number(alpha / deviation)} sd of the pretrained reward" if deviation else ""
        rows.append(HeadlineRow("Search: alpha", "", number(alpha), unit))
    return rows


def sample_grid(storage: Storage, run: RunData) -> Grid | None:
    """Choose rounds and columns, and embed the images; None before the first evaluation."""
    if not run.sample_files:
        return None
    rounds = thin(list(run.sample_files), MAX_GRID_ROWS)
    columns = choose_columns(load_samples(storage, run.sample_files[rounds[0]]), run.grid_columns)
    indices = [sample.index for sample in columns]
    mean = run.series("evaluate/reward_mean")
    rows = []
    for round_ in rounds:
        samples = load_samples(storage, run.sample_files[round_], indices)
        by_index = {sample.index: _cell(sample) for sample in samples}
        cells = [by_index.get(index) for index in indices]
        rows.append(GridRow(round_, mean.get(round_), cells))
    prompts: list[tuple[str, int]] = []
    for sample in columns:
        if prompts and prompts[-1][0] == sample.condition:
            prompts[-1] = (sample.condition, prompts[-1][1] + 1)
        else:
            prompts.append((sample.condition, 1))
    return Grid(prompts, rows, len(run.sample_files) - len(rounds))


def number(value: float | None) -> str:
    """Four significant digits; a dash where there is no value."""
    return "–" if value is None else f"{value:.4g}".replace("-", "−")


def _difference(run: RunData, name: str, label: str, last: int) -> HeadlineRow:
    first, now = run.series(name).get(0), run.series(name).get(last)
    difference = None if first is None or now is None or not last else now - first
    return _row(label, first, now, last, _signed(difference))


def _feasible(run: RunData, last: int) -> HeadlineRow:
    """Evaluations in which every reward is finite don't note the share."""
    first, now = (run.series("evaluate/feasible").get(round_, 1.0) for round_ in (0, last))
    return _row("Feasible (share of samples with a finite reward)", first, now, last, _signed(now - first))


def _row(measure: str, first: float | None, now: float | None, last: int, change: str) -> HeadlineRow:
    return HeadlineRow(measure, number(first), number(now) if last else "", change if last else "")


def _reward_row(run: RunData, label: str, mean: str, sd: str, last: int) -> HeadlineRow:
    """Mean and standard deviation, and the rise in those of round 0."""
    first, now = (_mean_sd(run.series(mean).get(r), run.series(sd).get(r)) for r in (0, last))
    return HeadlineRow(label, first, now if last else "", _signed(_rise(run, mean, sd), " sd"))


def _mean_sd(mean: float | None, sd: float | None) -> str:
    return number(mean) if mean is None or sd is None else f"{number(mean)} ± {number(sd)}"


def _signed(value: float | None, unit: str = "") -> str:
    return "" if value is None else f"{value:+.3g}{unit}".replace("-", "−")


def _cell(sample: Sample) -> Cell | None:
    """Small images as they are (PNG, enlarged by the browser), large ones as JPEG thumbnails."""
    if sample.image is None:
        return None
    with Image.open(io.BytesIO(sample.image)) as image:
        side = max(image.size)
        if side <= CRISP_BELOW:
            factor = max(1, round(CELL / side))
            uri = _data_uri("png", sample.image)
            return Cell(uri, sample.reward, image.width * factor, side < CRISP_BELOW)
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        encoded = io.BytesIO()
        image.convert("RGB").save(encoded, "JPEG", quality=88)
    return Cell(_data_uri("jpeg", encoded.getvalue()), sample.reward, CRISP_BELOW, False)


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _rewards(storage: Storage, run: RunData) -> dict[int, list[float]]:
    """Finite rewards of the samples of the first and the last evaluated round (one and the same at first)."""
    rounds = list(run.sample_files)
    ends = dict.fromkeys([*rounds[:1], *rounds[-1:]])
    samples = {round_: load_samples(storage, run.sample_files[round_]) for round_ in ends}
    return {round_: [s.reward for s in group if math.isfinite(s.reward)] for round_, group in samples.items()}


def _all_metrics(run: RunData) -> dict[str, Any]:
    """Every number of the run as a table: metrics as rows, rounds as columns."""
    rounds = sorted({round_ for series in run.metrics.values() for round_ in series})
    rows = [(name, [series.get(r) for r in rounds]) for name, series in sorted(run.metrics.items())]
    return {"rounds": rounds, "rows": rows}
