"""The golden scores of one reward in a run: who gives them, what a replica has to reproduce, and what becomes of one
that does not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dav_ray.errors import UserError
from dav_ray.rewards.base import Scored
from dav_ray.rewards.golden import (
    Golden,
    allowed,
    coarsest,
    decode,
    deviation,
    difference,
    encode,
    golden_path,
    spread,
    tolerance_on,
    usable,
)
from dav_ray.run_dir.storage.interface import Storage
from dav_ray.runtime.reward.replica import Facts
from dav_ray.runtime.reward.spec import RewardSpec


@dataclass(frozen=True)
class Verdict:
    """admitted: the replica serves; differs: it does not say the same (fields of the event); words: why it is refused;
    gap: its largest |score - golden|."""

    admitted: bool
    differs: dict[str, Any] = field(default_factory=dict)
    words: str = ""
    gap: float = 0.0


class GoldenScores:
    """golden: those that there are already."""

    def __init__(self, spec: RewardSpec, storage: Storage, golden: Golden | None) -> None:
        self._spec, self._storage, self._golden = spec, storage, golden

    @property
    def off(self) -> bool:
        """Nobody is asked for them."""
        return self._spec.golden_check == "off"

    @property
    def missing(self) -> bool:
        return self._golden is None and not self.off

    @property
    def wanted(self) -> Golden | None:
        """What a replica has to reproduce."""
        return None if self.off else self._golden

    def verdict(self, golden: Golden, facts: Facts, scored: Scored) -> Verdict:
        return judge(self._spec, golden, facts, scored)

    async def keep(self, made: tuple[np.ndarray, Sequence[str], Scored], grad: bool, facts: Facts) -> dict[str, Any]:
        """Store what a replica gave, if it is numbers; returns the fields of the event, none where it is not."""
        samples, conditions, scored = made
        if scored.error is not None or not usable(scored.values, len(conditions)) or not self.missing:
            return {}
        precision = coarsest(facts.precision, scored.dtype)
        golden = Golden(samples, tuple(conditions), np.asarray(scored.values), grad, precision)
        path = golden_path(self._spec.label)
        await asyncio.to_thread(self._storage.write, path, encode(golden))
        self._golden = golden
        return {"path": path, "samples": len(conditions), "hardware": facts.hardware, "precision": precision}


def judge(spec: RewardSpec, golden: Golden, facts: Facts, scored: Scored) -> Verdict:
    """Whether a replica that gives these scores serves."""
    tolerance = tolerance_on(facts.hardware, spec.tolerance)
    may = allowed(golden, tolerance, coarsest(facts.precision, scored.dtype))
    worst = difference(golden, scored.values, may)
    if worst is None:
        return Verdict(True)
    row, value, wanted = worst
    bound = f"reward.tolerance {tolerance:g}" if tolerance is not None else f"{may[row]:.3g} off is allowed"
    words = (
        f"{spec.label}: no replica reproduces the golden scores; the last one, on {facts.hardware}, gave "
        f"{scored.error or value} for sample {row} where {wanted} is golden ({bound})"
    )
    fields = {"sample": row, "value": scored.error or value, "golden": wanted, "allowed": float(may[row])}
    fields |= {"hardware": facts.hardware, "spread": spread(golden)}
    told = usable(scored.values, len(golden.values))  # numbers, if others
    gap = deviation(golden, np.asarray(scored.values)) if told else float("inf")
    return Verdict(told and spec.golden_check == "warn", fields, words, gap)


def known_golden(spec: RewardSpec, storage: Storage) -> Golden | None:
    """The user's, or those of the run so far. UserError if they can't be read."""
    path = spec.golden or golden_path(spec.label)
    try:
        if spec.golden is not None:
            return decode(Path(spec.golden).read_bytes())
        return decode(storage.read(path)) if storage.exists(path) else None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: holds no golden scores ({error}); allowed: golden/NAME.npz of a run") from error
