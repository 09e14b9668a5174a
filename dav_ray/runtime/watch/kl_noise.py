"""Telling the user, once, that half precision leaves the KL of the M-step's objective no say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dav_ray.run_dir.records import RunLog
    from dav_ray.runtime.watch.progress import Progress

EVENT = "kl_noise"


def drowned(metrics: Mapping[str, float]) -> bool:
    """Whether the KL that a round's objective held is rounding for the most part. False where nothing is rounded, or
    nothing has moved."""
    return metrics.get("mstep/kl_noise", 0.0) > metrics.get("mstep/kl", 0.0)


def in_words(metrics: Mapping[str, float]) -> str:
    """One line."""
    noise, kl = metrics["mstep/kl_noise"], metrics["mstep/kl"]
    fault = f"mstep: half precision adds {noise:.3g} nats of rounding to the KL of the objective, which is {kl:.3g}"
    return f"{fault} (in float32, as it is reported); a pull that counts needs model.dtype and mstep.precision float32"


class KlNoise:
    def __init__(self, log: RunLog, progress: Progress) -> None:
        self._log, self._progress, self._told = log, progress, False

    def tell(self, round: int, metrics: Mapping[str, float]) -> None:
        if self._told or not drowned(metrics):
            return
        self._told = True
        self._log.event(EVENT, round=round, noise=metrics["mstep/kl_noise"], kl=metrics["mstep/kl"])
        self._progress.say(in_words(metrics))
