"""Evidence of data that ended a run: `quarantine/round-0003-chunk-00012-nan.json`, and beside it the samples, `.npz`.

    dav-ray try-reward --again RUN_DIR/quarantine/FILE.json    scores the samples again, once a reward is mended

Nothing of it is ever read by a run: the chunk is searched again when the run goes on.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dav_ray.errors import DataError
from dav_ray.redact import hidden
from dav_ray.rewards.base import Asked, Scored
from dav_ray.run_dir.storage.interface import Storage
from dav_ray.types import Chunk, EvaluationChunk

FOLDER = "quarantine"
MOST_BYTES = 64_000_000  # of samples that are kept


@dataclass(frozen=True)
class Scene:
    """Where it happened. trace: the traceback; versions: of libraries."""

    worker: str
    node: str
    pid: int
    trace: str
    versions: Mapping[str, str]


def keep(storage: Storage, chunk: Chunk | EvaluationChunk, error: DataError, scene: Scene) -> DataError:
    """Write the evidence down; the error that names it. OSError or DavRayError where it can't be written."""
    path = evidence_path(chunk, error.what)
    record: dict[str, Any] = {
        "error": str(error),
        "what": error.what,
        "chunk": {"kind": type(chunk).__name__, **dataclasses.asdict(chunk)},
        "rows": list(error.rows),
        **dataclasses.asdict(scene),
        "time": round(time.time(), 3),
    }
    asked = error.evidence
    if isinstance(asked, Asked):
        arrays = evidence(asked, error.rows)
        held = io.BytesIO()
        np.savez_compressed(held, allow_pickle=False, **arrays)
        storage.write(f"{path}.npz", held.getvalue())
        record |= {
            "samples": f"{path}.npz",
            "kept": len(arrays["row"]),
            "asked": len(asked.conditions),
            "answers": [_in_words(*both) for both in zip(asked.rewards, asked.answers, strict=False)],
            "again": again(f"{storage.uri}/{path}.json"),
        }
    storage.write(f"{path}.json", json.dumps(hidden(record), indent=2).encode())  # last: it stands for the whole
    return error.kept_in(f"{path}.json")


def again(place: str) -> str:
    """The command that asks the rewards again about the samples that this file names."""
    return f"dav-ray try-reward --again {shlex.quote(place)}"


def evidence_path(chunk: Chunk | EvaluationChunk, what: str) -> str:
    """Without its ending."""
    kind = "round" if isinstance(chunk, Chunk) else "evaluation"
    return f"{FOLDER}/{kind}-{chunk.round:04d}-chunk-{chunk.index:05d}-{re.sub('[^a-z0-9]+', '-', what.lower())}"


def evidence(asked: Asked, rows: Sequence[int]) -> dict[str, np.ndarray]:
    """samples [K, ...] as the rewards saw them, row [K] their places in the call, condition [K]; value/R [K] float64
    and gradient/R [K, ...] of reward R, or answer/R whatever its shape. All rows where none is known to be at fault, as
    many as fit."""
    each = max(1, asked.samples[:1].nbytes)
    chosen = np.array(rows or range(len(asked.conditions)), np.int64)[: max(1, MOST_BYTES // each)]
    arrays = {
        "samples": asked.samples[chosen],
        "row": chosen,
        "condition": np.array([asked.conditions[i] for i in chosen], np.str_),
    }
    for number, scored in enumerate(asked.answers):
        if scored.values is not None and scored.values.shape == (len(asked.conditions),):
            arrays[f"value/{number}"] = scored.values[chosen]
        elif scored.values is not None:
            arrays[f"answer/{number}"] = scored.values
        if scored.grads is not None and len(scored.grads) == len(asked.conditions):
            arrays[f"gradient/{number}"] = scored.grads[chosen]
    return arrays


def _in_words(name: str, scored: Scored) -> dict[str, Any]:
    shape = None if scored.values is None else list(scored.values.shape)
    return {"reward": name, "error": scored.error, "traceback": scored.trace, "shape": shape}
