"""The report's part on sequences: logos by round, edit distances, the best sequences of the run."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dav_ray.evaluation.diversity import edit_distances
from dav_ray.report.charts import Chart, edit_distance_histogram
from dav_ray.report.data import RunData, load_accepted, load_table, thin
from dav_ray.run_dir.storage.interface import Storage

MAX_LOGOS = 6
BEST = 20
LEAST_TOP = 0.1  # bits; below, a logo's axis would magnify noise


@dataclass(frozen=True)
class Logo:
    round: int
    samples: int
    uri: str


@dataclass(frozen=True)
class BestRow:
    """A sequence of the last evaluation or of the accepted trajectories."""

    text: str
    reward: float
    heldout: list[float | None]  # None where it was accepted only: held-out rewards see no accepted trajectory
    seen: int
    distance: int | None  # to the nearest sample of the pretrained model, in edits


@dataclass(frozen=True)
class SequenceReport:
    logos: list[Logo]
    rounds_hidden: int
    edit_distances: Chart | None
    heldout: list[str]  # names of the best rows' held-out values
    best: list[BestRow]


def sequence_report(storage: Storage, run: RunData) -> SequenceReport | None:
    """None before the first evaluation."""
    if not run.sample_files:
        return None
    rounds = thin(list(run.sample_files), MAX_LOGOS)
    tables = {round_: load_table(storage, run.sample_files[round_]) for round_ in rounds}
    texts = {round_: table.column("sequence").to_pylist() for round_, table in tables.items()}
    distances = {round_: edit_distances(texts[round_], texts[round_]) for round_ in (rounds[0], rounds[-1])}
    last = tables[rounds[-1]]
    heldout = [name for name in last.column_names if name.startswith("heldout/")]
    return SequenceReport(
        logos(texts, run),
        len(run.sample_files) - len(rounds),
        edit_distance_histogram(distances, run.first),
        [name.removeprefix("heldout/") for name in heldout],
        best_rows(last, load_accepted(storage, run), heldout, texts.get(0, [])),
    )


def logos(texts: dict[int, list[str]], run: RunData) -> list[Logo]:
    """One logo per round, all with the same axis, so that they can be compared."""
    from dav_ray.report.logos import draw, information

    alphabet = run.alphabet
    heights = {
        round_: information(np.stack([alphabet.encode(text) for text in rows]), len(alphabet.letters))
        for round_, rows in texts.items()
    }
    top = max(LEAST_TOP, 1.05 * max(float(height.sum(1).max()) for height in heights.values()))
    return [Logo(round_, len(texts[round_]), draw(height, alphabet, top)) for round_, height in heights.items()]


def best_rows(last: pa.Table, accepted: pa.Table | None, heldout: list[str], pretrained: list[str]) -> list[BestRow]:
    """The BEST distinct sequences with the highest finite rewards; of one seen with several conditions, its best."""
    rows = last.select(["sequence", "reward", *heldout]).to_pylist()
    seen: Counter[str] = Counter()
    best: dict[str, dict[str, float]] = {}
    for row in [*rows, *(accepted.to_pylist() if accepted is not None else [])]:
        text = row["sequence"]
        seen[text] += 1
        if math.isfinite(row["reward"]) and (text not in best or row["reward"] > best[text]["reward"]):
            best[text] = {**best.get(text, {}), **row}
    chosen = sorted(best, key=lambda text: (-best[text]["reward"], text))[:BEST]
    nearest = edit_distances(chosen, pretrained).min(1).tolist() if chosen and pretrained else [None] * len(chosen)
    return [
        BestRow(text, best[text]["reward"], [best[text].get(name) for name in heldout], seen[text], distance)
        for text, distance in zip(chosen, nearest, strict=True)
    ]
