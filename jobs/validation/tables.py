"""What each part of `jobs/validate.py` takes and returns."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image


@dataclass(frozen=True)
class Options:
    """out: folder for figures; scale: number of samples relative to the published tables; seed of everything drawn."""

    out: Path
    scale: float = 1.0
    seed: int = 0

    def samples(self, full: int) -> int:
        return max(1, round(self.scale * full))


@dataclass(frozen=True)
class Table:
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def markdown(self) -> str:
        lines = [f"**{self.title}**", "", _row(self.header), _row("---" for _ in self.header)]
        lines += [_row(row) for row in self.rows]
        return "\n".join([*lines, *(["", self.note] if self.note else []), ""])


def save(figure: Figure, path: Path) -> None:
    """A PNG of 64 colours: a third of the bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer)
    Image.open(buffer).convert("RGB").quantize(64).save(path, optimize=True)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
