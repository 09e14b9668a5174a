"""The E-step's times as bars."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from jobs.tables import save

NAMES = {"limit": "limit", "ours": "in process", "pipeline": "pipeline", "plain": "plain loop"}


def draw(measured: Sequence[dict[str, Any]], path: Path) -> None:
    """measured: `SearchTimes` as dictionaries. Seconds per accepted sample over those of the limit, with all turns."""
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.8 + 0.9 * len(measured)), layout="constrained")
    axes = figure.subplots()
    for row, each in enumerate(measured):
        limit = each["times"]["limit"]["values"]
        for place, name in enumerate(NAMES):
            ratios = [ours / bare for ours, bare in zip(each["times"][name]["values"], limit, strict=True)]
            y = row + 0.2 * (place - 1.5)
            axes.barh(y, statistics.median(ratios), 0.18, color=f"C{place}", label=None if row else NAMES[name])
            axes.plot(ratios, [y] * len(ratios), "k.", markersize=3)
    axes.set_yticks(range(len(measured)), [each["workload"] for each in measured])
    axes.invert_yaxis()
    axes.set_xlabel("seconds per accepted sample over those of the networks alone")
    axes.legend(loc="best")
    save(figure, path)
