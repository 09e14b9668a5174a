"""What each part of `jobs/validation` takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """out: folder for figures; scale: number of samples relative to the published tables; seed of everything drawn."""

    out: Path
    scale: float = 1.0
    seed: int = 0

    def samples(self, full: int) -> int:
        return max(1, round(self.scale * full))
