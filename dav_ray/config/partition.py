"""How a round's work is cut: prompts of trajectories, chunks, groups that are trained on."""

from __future__ import annotations

from collections.abc import Sequence


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


def round_prompts(prompts: Sequence[str], round: int, num: int, *, together: bool) -> list[str]:
    """The prompt of each of a round's `num` trajectories. Prompts take turns, over rounds too, so that each is searched
    equally often; `together`: the trajectories of a prompt stand side by side, so that chunks hold few prompts."""
    order = [((round - 1) * num + n) % len(prompts) for n in range(num)]
    return [prompts[i] for i in (sorted(order) if together else order)]
