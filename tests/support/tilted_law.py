"""A search of one's own against the enumerable problem, whose laws are known."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dav_ray.config.build import strategy
from dav_ray.search.options import Search
from dav_ray.testing.base import BulkNoise, scorer
from dav_ray.testing.enumerable import Scores, frequencies, law, model

MANY, ALPHA = 6000, 1.5


def samples_of_the_tilted_law(kind: str) -> tuple[Tensor, Tensor]:
    """Samples [N, L] of this kind of search, and the law of the model without it, once both enumerated facts hold: E[W]
    = Z, and by their weights the samples follow p exp(r / alpha) / Z. AssertionError else."""
    diffusion, reward = model(moved=0.3), Scores()
    config = Search.model_validate({"kind": kind, "candidates": 3, "alpha": ALPHA})
    noise: Any = BulkNoise(1, MANY)
    found = strategy(config)(diffusion, scorer(reward), [""] * MANY, noise)

    plain = law(diffusion)
    tilted = plain * (reward.table.double() / ALPHA).exp()
    assert found.log_weight is not None and found.cost.network == 3 * MANY * diffusion.steps
    w = found.log_weight.exp()
    assert abs(float(w.mean()) - float(tilted.sum())) < 4 * float(w.std()) / MANY**0.5
    assert 0.5 * float((frequencies(found.sample, w) - tilted / tilted.sum()).abs().sum()) < 0.06
    return found.sample, plain
