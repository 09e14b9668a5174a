"""Timing that survives a noisy machine: contenders take turns, ratios are taken turn by turn, the median is quoted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Series:
    """One figure, turn by turn."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def over(self, other: Series) -> Series:
        """Ratios, turn by turn."""
        return Series(tuple(a / b for a, b in zip(self.values, other.values, strict=True)))

    def show(self, scale: float = 1.0, digits: int = 3) -> str:
        """The median, and from where to where the turns went."""
        low, high = min(self.values) * scale, max(self.values) * scale
        return f"{self.median * scale:.{digits}g} ({low:.{digits}g}-{high:.{digits}g})"


def now(device: str) -> float:
    """Seconds, once the device has finished what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], Any], device: str = "cpu") -> float:
    start = now(device)
    work()
    return now(device) - start


def in_turn(contenders: dict[str, Callable[[], float]], turns: int) -> dict[str, Series]:
    """Every contender once per turn, after one warm-up of each; each returns its own figure."""
    for contender in contenders.values():
        contender()
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(turns):
        for name, contender in contenders.items():
            found[name].append(contender())
    return {name: Series(tuple(values)) for name, values in found.items()}


def best_batch(work: Callable[[int], Callable[[], Any]], sizes: Sequence[int], device: str, turns: int = 3) -> int:
    """The size at which `work(size)`, called as often as gives the same number of rows, is quickest in the best of its
    turns; sizes from the first on that does not fit in memory are left out."""
    fitting: dict[int, float] = {}
    for size in sizes:
        try:
            work(size)()
        except (torch.OutOfMemoryError, MemoryError):
            break
        fitting[size] = float("inf")
    for _ in range(turns):
        for size in fitting:
            call, calls = work(size), max(fitting) // size
            fitting[size] = min(fitting[size], seconds(lambda: [call() for _ in range(calls)], device))  # noqa: B023
    return min(fitting, key=lambda size: fitting[size])
