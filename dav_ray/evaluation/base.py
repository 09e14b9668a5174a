"""What a sample of a model is: how tables show it, how samples are compared, and which files they are written to.

A new kind of sample is one file with one class that meets `SampleKind`, named in `kinds.KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from dav_ray.errors import UserError
from dav_ray.types import EvaluationChunk

if TYPE_CHECKING:
    from torch import Tensor

Features = Callable[["Tensor"], "Tensor"]  # samples [B, ...] -> [B, D]


class SampleKind(Protocol):
    def features(self) -> Features | None:
        """What diversity/features is measured in; None where it is not measured."""
        ...

    def columns(self, diffusion: Any, samples: Tensor, chunk: EvaluationChunk) -> dict[str, pa.Array]:
        """Columns of an evaluation that show the samples [B, ...], or say of them what only the model knows."""
        ...

    def measures(self, table: pa.Table) -> dict[str, float]:
        """Metrics of a whole evaluation beside rewards, held-out rewards and KL."""
        ...

    def place(self, out: str) -> Path:
        """Where `write` puts its files, folders made. UserError if samples of this kind can't be written there."""
        ...

    def write(self, table: pa.Table, place: Path) -> str:
        """Write an evaluation's samples as files; returns what was written, in words."""
        ...


def finite(table: pa.Table, name: str) -> np.ndarray:
    """A column's finite values, float64: minus infinity, which a reward may give, is left out."""
    values = table.column(name).to_numpy()
    return values[np.isfinite(values)]


def check_free(out: str, *, force: bool) -> None:
    """UserError naming --out if there is something at that place already, but for an empty folder, or with force."""
    path = Path(out)
    if force or not path.exists():
        return
    if not path.is_dir() or any(path.iterdir()):
        what = "a folder with files in it" if path.is_dir() else "a file"
        raise UserError(
            f"--out {out}: is {what} already; allowed: another place, or --force to write over what is there"
        )


def folder(path: Path, out: str) -> Path:
    """The folder, made if absent. UserError naming --out if it can't be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {path} can't be made a folder ({error.strerror})") from None
    return path
