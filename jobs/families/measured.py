"""What is measured of one family in this process: the oracle's differences, and adapters that are loaded again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dav_ray.config.families.table import PIPELINES
from dav_ray.registry import load
from tests.support.oracle import differences, lora_round_trip
from tests.support.pipelines import unconditional
from tests.support.pipelines.cases import Case

MOST_APART = 1e-5  # of outputs and pictures, float32
LEAST_MOVED = 1e-4  # of pictures with adapters that are not zero, from those without
MOST_LEVELS = 1  # of 255: another batch rounds otherwise


@dataclass(frozen=True)
class Run:
    """A whole run: its seconds; the largest differences of its stored samples, in levels of 255, from those of the
    loaded pipeline, and from those of the pipeline before the run."""

    seconds: float
    levels: int
    moved: int


@dataclass(frozen=True)
class Differences:
    """The largest ones; moved: of the pictures with and without the adapters."""

    output: float
    picture: float
    round_trip: float
    moved: float


@dataclass(frozen=True)
class Row:
    """Of a pipeline's class; run: None where none was asked for."""

    pipeline: str
    differences: Differences
    run: Run | None


def oracle(case: Case, folder: Path) -> tuple[float, float]:
    """The largest differences of outputs and of pictures from the pipeline's own call."""
    pipe = case.tiny(folder)
    said = case.draw(pipe)
    noise = case.noise() if case.noise else None
    output, picture, _ = differences(case.oracle(pipe), said, case.prompts, case.begin(), noise=noise)
    return output, picture


def round_trip(case: Case, folder: Path) -> tuple[float, float]:
    """The largest differences between the pictures of an adapter with LoRA layers that are not zero and those of the
    pipeline that has them; between those with and without."""
    if not case.conditional:
        return unconditional.round_trip(case.tiny(folder), folder)
    targets = load(PIPELINES[case.pipeline]).lora_targets
    noise = case.noise() if case.noise else None
    return lora_round_trip(
        case.oracle,
        lambda: case.tiny(folder / "tokenizers"),
        case.draw,
        targets,
        case.prompts,
        case.begin(),
        folder / "policy",
        noise,
    )


def faults(row: Row) -> list[str]:
    """One line per thing that is not as it has to be."""
    each = row.differences
    apart = (("output", each.output), ("picture", each.picture), ("LoRA", each.round_trip))
    found = [f"{name}: {v:.1e} apart; allowed: below {MOST_APART:.0e}" for name, v in apart if not v < MOST_APART]
    if not each.moved > LEAST_MOVED:
        found.append(f"LoRA: moved pictures by {each.moved:.1e} alone, which says nothing")
    if row.run is not None and row.run.levels > MOST_LEVELS:
        found.append(f"run: samples are {row.run.levels} of 255 apart; allowed: {MOST_LEVELS}")
    if row.run is not None and row.run.moved <= max(row.run.levels, MOST_LEVELS):
        found.append(f"run: training moved samples by {row.run.moved} of 255 alone, which says nothing")
    return found
