"""Which steps of a search are scored, and what the others save. A state that nobody scores has V := 0, and is drawn
as the model draws it: log W stays proper, whatever is skipped; only the law without weights changes."""

from __future__ import annotations

import math

from dav_ray.search.options import Search
from dav_ray.search.temperature import magnitude


def unscored(search: Search) -> frozenset[int]:
    """The t in 1..T-1 whose states x_t no reward sees. x_0 is always scored."""
    skipped = (t for t in range(1, search.steps) if t % search.score_every or change(search, t) < search.negligible)
    return frozenset(skipped)


def change(search: Search, t: int) -> float:
    """The most by which scoring x_t changes the choice among its candidates, in total variation, where their rewards
    differ by `search.spread` at most: two softmax whose log weights differ by delta in range are at most tanh(delta/4)
    apart, and delta = gamma^t spread / alpha, both in the same unit. 1 where no spread is given."""
    return math.tanh(search.gamma**t * search.spread / magnitude(search.alpha) / 4) if search.spread else 1.0


def counts(search: Search) -> tuple[int, int, int]:
    """(network evaluations, those with backward, reward calls) per accepted sample of a `dav` search.

    A scored state costs its M candidates' evaluations (none at t = 0); the step to it costs its parent's with backward
    where the proposal is tilted, and its parent's own only where nobody has evaluated it yet.
    """
    skipped, network, backward, rewards = unscored(search), 0, 0, 0
    for t in range(search.steps):
        parent_known = t + 1 < search.steps and t + 1 not in skipped
        tilted = search.gradient and t not in skipped
        network += tilted or not parent_known
        backward += tilted
        if t not in skipped:
            network += search.candidates if t > 0 else 0
            rewards += search.candidates + search.gradient
    return network, backward, rewards
