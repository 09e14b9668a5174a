"""Golden scores: a few samples and what a reward said of them, which every other replica has to reproduce; pure.

A file is a NumPy archive (.npz) of `samples` [B, ...], `conditions` [B], `values` [B] float64 and `grad`.
"""

from __future__ import annotations

import io
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np

ROWS = 8
DEFAULT = 1e-3  # float32 networks differ by less between kinds of GPU
MOST_BYTES = 2_000_000_000  # of a file's arrays once they are decompressed


# what the readers of zip archives and of arrays raise at a file that is none
_BROKEN = (KeyError, EOFError, OSError, MemoryError, NotImplementedError, OverflowError, RuntimeError, SyntaxError)
_BROKEN += (TypeError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Golden:
    samples: np.ndarray  # [B, ...], B <= ROWS
    conditions: tuple[str, ...]
    values: np.ndarray  # [B] float64, minus infinity allowed
    grad: bool  # the samples are of the kind that gradients are asked for


def golden_path(label: str) -> str:
    """Where a run directory keeps the golden scores of the reward of this name."""
    return f"golden/{quote(label, safe=' ')}.npz"


def usable(values: np.ndarray | None, num: int) -> bool:
    """Whether these scores may be golden: one for each sample, none of them NaN or plus infinity."""
    return values is not None and values.shape == (num,) and not bool((np.isnan(values) | (values == np.inf)).any())


def encode(golden: Golden) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(
        file,
        samples=golden.samples,
        conditions=np.array(golden.conditions, dtype=np.str_),
        values=golden.values,
        grad=np.array(golden.grad),
    )
    return file.getvalue()


def decode(data: bytes) -> Golden:
    """ValueError if it is no such archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MOST_BYTES:
            raise ValueError(f"{size:,} bytes; allowed: at most {MOST_BYTES:,}")
        with np.load(io.BytesIO(data), allow_pickle=False) as held:
            found = Golden(
                held["samples"],
                tuple(map(str, held["conditions"].reshape(-1))),
                held["values"].astype(float),
                bool(held["grad"]),
            )
    except _BROKEN as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    num = len(found.conditions)
    if num == 0 or found.samples.shape[:1] != (num,) or not usable(found.values, num):
        raise ValueError(f"{sum(found.samples.shape[:1])} samples, {num} conditions, {found.values.size} scores")
    return found


def tolerance_on(hardware: str, tolerance: Mapping[str, float]) -> float:
    """hardware: "cpu", or a GPU's type as Ray names it; what is not named has the tolerance `default`, or DEFAULT."""
    return tolerance.get(hardware, tolerance.get("default", DEFAULT))


def difference(golden: Golden, values: np.ndarray | None, tolerance: float) -> tuple[int, float, float] | None:
    """(sample, its score, golden score) of the worst sample if not all |score - golden| <= tolerance max(1, |golden|);
    infinities have to be equal. None: reproduced. A score of NaN stands for none at all."""
    if values is None or values.shape != golden.values.shape:
        return 0, float("nan"), float(golden.values[0])
    same = values == golden.values
    with np.errstate(invalid="ignore"):
        gap = np.where(same, 0.0, np.abs(values - golden.values) / np.maximum(1.0, np.abs(golden.values)))
    gap[np.isnan(gap)] = np.inf
    worst = int(gap.argmax())
    return None if gap[worst] <= tolerance else (worst, float(values[worst]), float(golden.values[worst]))


def first_rows(samples: np.ndarray, conditions: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The samples that become golden: a copy of the first few."""
    return np.array(samples[:ROWS]), tuple(conditions[:ROWS])
