"""How a round's work is cut: prompts of trajectories, chunks, groups that are trained on."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate


def spans(total: int, size: int) -> Sequence[range]:
    """0..total-1 in consecutive ranges of `size`; the last may be shorter."""
    return [range(a, min(a + size, total)) for a in range(0, total, size)]


def training_groups(trajectories: int, chunk: int, group: int, ranks: int) -> list[list[int]]:
    """Chunk numbers by group, `group` chunks each; a last group too small for the ranks joins the one before."""
    chunks = spans(trajectories, chunk)
    groups = [list(span) for span in spans(len(chunks), group)]
    if len(groups) > 1 and sum(len(chunks[i]) for i in groups[-1]) < ranks:
        groups[-2:] = [groups[-2] + groups[-1]]
    return groups


def round_prompts(
    prompts: Sequence[str], round: int, num: int, *, together: bool, weights: Sequence[float] = (), seed: int = 0
) -> list[str]:
    """The prompt of each of a round's `num` trajectories. Prompts take turns, over rounds too, so that each is searched
    equally often; `together`: the trajectories of a prompt stand side by side, so that chunks hold few prompts.

    weights: of each, > 0: they are drawn in proportion instead, by `seed`, so that a prompt's number is never 1 or more
    away from its share of `num`.
    """
    if weights:
        order = _drawn(weights, round, num, seed)
    else:
        order = [((round - 1) * num + n) % len(prompts) for n in range(num)]
    return [prompts[i] for i in (sorted(order) if together else order)]


def _drawn(weights: Sequence[float], round: int, num: int, seed: int) -> list[int]:
    """Systematic sampling: equidistant points over the shares, moved by one random number, in random order."""
    rng = random.Random(f"prompts of round {round}, seed {seed}")  # of a text: the same in all releases of Python
    ends = list(accumulate(weights))
    offset = rng.random()
    found = [min(bisect_right(ends, (n + offset) / num * ends[-1]), len(ends) - 1) for n in range(num)]
    places = [(rng.random(), i) for i in found]
    return [i for _, i in sorted(places)]
