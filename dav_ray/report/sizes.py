"""How many samples each round was evaluated on, where that changed in the course of a run."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from dav_ray.report.data import RunData
from dav_ray.run_dir.storage.interface import Storage

MEASURE = "evaluate/samples"


def sizes_in_words(storage: Storage, run: RunData) -> str:
    """One sentence; empty where all rounds have the same number, as far as is known."""
    spans: list[tuple[int, int, int]] = []  # first round, last round, samples
    for round_ in run.evaluated:
        count = run.series(MEASURE).get(round_) or _rows(storage, run.sample_files.get(round_))
        if count is None:
            continue
        if spans and spans[-1][2] == int(count):
            spans[-1] = spans[-1][0], round_, int(count)
        else:
            spans.append((round_, round_, int(count)))
    if len(spans) < 2:
        return ""
    words = [f"{n} in round {a}" if a == b else f"{n} in rounds {a} to {b}" for a, b, n in spans]
    return f"The rounds were evaluated on different numbers of samples: {', '.join(words)}."


def _rows(storage: Storage, path: str | None) -> int | None:
    """Of a round whose metrics don't tell."""
    if path is None:
        return None
    try:
        return pq.read_metadata(pa.BufferReader(storage.read(path))).num_rows
    except (pa.ArrowException, OSError):
        return None
