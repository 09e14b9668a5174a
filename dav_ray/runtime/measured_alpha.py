"""Measures alpha where the recipe gives it in standard deviations (`search.alpha: 0.1 sd`).

It is measured once, on the samples of round 0 (the model that the run starts from, without search), and kept in the
manifest. From then on it holds for the run, even if these samples are lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from dav_ray.errors import RunError
from dav_ray.evaluation.base import finite
from dav_ray.search.weighting.temperature import Alpha, in_sd, magnitude, number

if TYPE_CHECKING:
    from collections.abc import Callable

    from dav_ray.run_dir.manifest import ManifestStore
    from dav_ray.run_dir.records import RunLog
    from dav_ray.runtime.watch.progress import Progress


def settle(alpha: Alpha, store: ManifestStore, log: RunLog, progress: Progress, read: Callable[[], pa.Table]) -> float:
    """The run's temperature in the reward's unit. read: the samples of round 0, asked for where the manifest has no
    number yet. RunError where their rewards have no standard deviation."""
    if not in_sd(alpha) or store.current.alpha is not None:
        return number(alpha, store.current.alpha)
    rewards = finite(read(), "reward")
    deviation = standard_deviation(alpha, rewards)
    settled = store.settle_alpha(magnitude(alpha) * deviation)
    log.event("alpha_measured", alpha=settled, typed=alpha, sd=deviation, samples=len(rewards))
    progress.say(f"search.alpha = {alpha}: {settled:.4g}, as the reward's standard deviation is {deviation:.4g}")
    return settled


def standard_deviation(alpha: Alpha, rewards: np.ndarray) -> float:
    """Of the population of finite rewards [N] > 0. RunError where there is none."""
    with np.errstate(over="ignore"):
        deviation = float(rewards.std()) if len(rewards) else 0.0
    if not len(rewards):
        why = "no sample of the pretrained model has a finite reward"
    elif rewards.min() == rewards.max():
        why = f"all {len(rewards)} samples of the pretrained model have the reward {rewards[0]:.6g}"
    elif 0 < deviation * magnitude(alpha) < np.inf:
        return deviation
    else:
        why = f"the rewards of the pretrained model's samples have the standard deviation {deviation:.6g}"
    raise RunError("reward", f"search.alpha = {alpha}: {why}; allowed: a number, in a new run directory")
