"""Who does what next: pull scheduling of work items, pure and clock-free.

A worker asks when it is free, so that fast ones do more. The lowest index is handed out first; what a lost worker had
is handed out again.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Exhausted(Exception):
    """An item was lost too often."""


class Schedule(Generic[Item]):
    """items in the order in which they are to start; `attempts`: how often one may be tried before `Exhausted`."""

    def __init__(self, items: Sequence[Item], attempts: int) -> None:
        self._items = list(items)
        self._attempts = attempts
        self._waiting = list(range(len(items)))  # a heap of indices
        self._running: dict[Hashable, int] = {}
        self._tried = [0] * len(items)
        self._done: set[int] = set()

    @property
    def finished(self) -> bool:
        return len(self._done) == len(self._items)

    @property
    def done(self) -> int:
        return len(self._done)

    def next(self, worker: Hashable) -> Item | None:
        """The item that this free worker starts now; None if nothing waits."""
        if worker in self._running:
            raise ValueError(f"worker {worker} is busy")
        if not self._waiting:
            return None
        index = heapq.heappop(self._waiting)
        self._running[worker] = index
        self._tried[index] += 1
        return self._items[index]

    def complete(self, worker: Hashable) -> None:
        """The worker's item is accepted."""
        self._done.add(self._running.pop(worker))

    def lost(self, worker: Hashable) -> Item:
        """The worker is gone; its item waits again and is returned. Exhausted if it was tried too often."""
        index = self._running.pop(worker)
        if self._tried[index] >= self._attempts:
            raise Exhausted(f"lost {self._tried[index]} times")
        heapq.heappush(self._waiting, index)
        return self._items[index]


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
