"""Golden scores: a few samples and what a reward said of them, which every other replica has to reproduce; pure.

A file is a NumPy archive (.npz) of `samples` [B, ...], `conditions` [B], `values` [B] float64, `grad` and `precision`.
"""

from __future__ import annotations

import io
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import ModuleType
from typing import Any
from urllib.parse import quote

import numpy as np

ROWS = 8
DEFAULT = 1e-3  # float32 networks differ by less between kinds of GPU
# of numbers of these types: the share of the scores' standard deviation by which kinds of hardware may differ (measured
# of CLIP, aesthetic and preference models: up to 0.075 in bfloat16), and the distance from 1 to the next number
SPREAD = {"float64": 0.0, "float32": 0.01, "float16": 0.05, "bfloat16": 0.1}
STEP = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
NARROW = ("int8", "uint8", "float8_e4m3fn", "float8_e5m2")
DEEPEST, MOST_PARTS = 5, 100  # of the objects that a reward is made of
STEPS = 2.0  # by how many such distances a score may be missed
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
    precision: str = "float64"  # the coarsest type of number behind the values; this one where nothing is known


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
        precision=np.array(golden.precision),
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
                coarsest(str(held["precision"]) if "precision" in held else ""),
            )
    except _BROKEN as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    num = len(found.conditions)
    if num == 0 or found.samples.shape[:1] != (num,) or not usable(found.values, num):
        raise ValueError(f"{sum(found.samples.shape[:1])} samples, {num} conditions, {found.values.size} scores")
    return found


def tolerance_on(hardware: str, tolerance: Mapping[str, float]) -> float | None:
    """hardware: "cpu", or a GPU's type as Ray names it; what is not named has the tolerance `default`. None: none is
    given."""
    return tolerance.get(hardware, tolerance.get("default"))


def allowed(golden: Golden, tolerance: float | None, precision: str) -> np.ndarray:
    """[B]: by how much each score may be missed. A tolerance that is given is relative above 1 and absolute below.
    Without one it is DEFAULT, or more where the numbers behind the scores are coarse: what they can't hold, and a share
    of the spread of the scores, which is what a search chooses by. precision: of the replica."""
    size = np.abs(np.where(np.isfinite(golden.values), golden.values, 0.0))
    if tolerance is not None:
        return tolerance * np.maximum(1.0, size)
    kind = coarsest(golden.precision, precision)
    return np.maximum.reduce(
        [DEFAULT * np.maximum(1.0, size), STEPS * STEP[kind] * size, np.full(len(size), SPREAD[kind] * spread(golden))]
    )


def difference(golden: Golden, values: np.ndarray | None, may: np.ndarray) -> tuple[int, float, float] | None:
    """(sample, its score, golden score) of the worst sample if not all |score - golden| <= may [B]; infinities have to
    be equal. None: reproduced. A score of NaN stands for none at all."""
    if values is None or values.shape != golden.values.shape:
        return 0, float("nan"), float(golden.values[0])
    gaps = _gaps(golden, values)
    if (gaps <= may).all():
        return None
    size = np.where(np.isfinite(golden.values), np.abs(golden.values), 1.0)
    worst = int(((gaps - may) / np.maximum(1.0, size)).argmax())
    return worst, float(values[worst]), float(golden.values[worst])


def deviation(golden: Golden, values: np.ndarray) -> float:
    """The largest |score - golden|."""
    return float(_gaps(golden, values).max())


def spread(golden: Golden) -> float:
    """The standard deviation of the finite scores; 0 where there are none."""
    finite = golden.values[np.isfinite(golden.values)]
    return float(finite.std()) if len(finite) else 0.0


def _gaps(golden: Golden, values: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        gaps = np.where(values == golden.values, 0.0, np.abs(values - golden.values))
    return np.where(np.isnan(gaps), np.inf, gaps)


def coarsest(*kinds: str) -> str:
    """Of types of numbers by name: those of `STEP`; a narrower one (8 or 4 bits) counts as bfloat16, which networks
    compute in that have such weights; none counts as exact."""
    known = [kind if kind in STEP else "bfloat16" if kind in NARROW else "float64" for kind in kinds]
    return max(known, key=list(SPREAD).index, default="float64")


def precision_of(reward: Any) -> str:
    """The coarsest type of number that a reward computes with: what it says itself (its attribute `precision`), or that
    of the parameters of the torch modules that it holds."""
    said = getattr(reward, "precision", None)
    if isinstance(said, str):
        return coarsest(said)
    kinds = {str(tensor.dtype).removeprefix("torch.") for module in _networks(reward) for tensor in module.parameters()}
    return coarsest(*kinds)


def _networks(holder: Any, depth: int = 0) -> Iterator[Any]:
    """Torch modules among an object's attributes, in lists and dicts of them, and in what it holds."""
    if callable(getattr(type(holder), "parameters", None)) and callable(getattr(type(holder), "modules", None)):
        yield holder
    elif depth < DEEPEST and not isinstance(holder, (type, ModuleType, str, bytes)):
        listed = holder if isinstance(holder, (list, tuple)) else ()
        named = holder if isinstance(holder, dict) else getattr(holder, "__dict__", {})
        for value in islice((*named.values(), *listed), MOST_PARTS):
            yield from _networks(value, depth + 1)


def some_rows(samples: np.ndarray, conditions: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The samples that become golden: a copy of a few, from first to last. Those that stand side by side are candidates
    of one state, and nearly the same."""
    rows = np.linspace(0, max(0, len(samples) - 1), min(len(samples), ROWS)).round().astype(int).tolist()
    return np.array(samples[rows]), tuple(conditions[row] for row in rows)
