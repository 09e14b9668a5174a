"""Who does what next: pull scheduling of work items, pure; the clock is an argument.

A worker asks when it is free, so that fast ones do more. The lowest index is handed out first; what a lost worker had
is handed out again. At a round's end a free worker doubles what another is slow with: the first result counts.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")

COPIES = 2  # workers on one item at most
LATE = 2.0  # times a worker's usual time after which the first open item is doubled although others wait


class Exhausted(Exception):
    """An item was lost, or late, too often."""


class Schedule(Generic[Item]):
    """items in the order in which they are to start; `attempts`: how often one may be lost before `Exhausted`,
    `delays`: how often late; in_order: who consumes the results waits for the first open item, which is doubled when
    it is late. now: seconds of any clock that does not go back."""

    def __init__(self, items: Sequence[Item], attempts: int, delays: int = 3, *, in_order: bool = False) -> None:
        self._items = list(items)
        self._attempts, self._delays, self._in_order = attempts, delays, in_order
        self._waiting = list(range(len(items)))  # a heap of indices
        self._running: dict[Hashable, tuple[int, float]] = {}  # worker -> item, since
        self._runners: dict[int, set[Hashable]] = {}  # item -> workers
        self._losses = [0] * len(items)
        self._late: dict[int, list[Hashable]] = {}  # item -> workers that were given up over it
        self._done: set[int] = set()
        self._first = 0  # all items before it are done
        self._pace: dict[Hashable, tuple[int, float]] = {}  # worker -> items it did, seconds in all
        self._total = (0, 0.0)  # the same of all workers

    @property
    def finished(self) -> bool:
        return len(self._done) == len(self._items)

    @property
    def done(self) -> int:
        return len(self._done)

    def next(self, worker: Hashable, now: float) -> Item | None:
        """The item that this free worker starts now; None if nothing waits and no help is of use."""
        if worker in self._running:
            raise ValueError(f"worker {worker} is busy")
        index = self._late_first(now)
        if index is None:
            index = heapq.heappop(self._waiting) if self._waiting else self._slowest(worker, now)
        if index is None:
            return None
        self._running[worker] = index, now
        self._runners.setdefault(index, set()).add(worker)
        return self._items[index]

    def doubled(self, worker: Hashable) -> bool:
        """Whether another worker is at this one's item too."""
        return len(self._runners[self._running[worker][0]]) > 1

    def complete(self, worker: Hashable, now: float) -> bool:
        """The worker is done with its item. False if another was done with it before: this result does not count."""
        index, since = self._leave(worker)
        count, seconds = self._pace.get(worker, (0, 0.0))
        self._pace[worker] = count + 1, seconds + now - since
        self._total = self._total[0] + 1, self._total[1] + now - since
        if index in self._done:
            return False
        self._done.add(index)
        while self._first in self._done:
            self._first += 1
        return True

    def lost(self, worker: Hashable, *, counts: bool = True) -> Item | None:
        """The worker is gone; its item is returned if it waits again, None if someone else has or had it. Exhausted if
        it was lost too often, times that don't count left out."""
        index, _ = self._leave(worker)
        if not self._open(index):
            return None
        self._losses[index] += counts
        if self._losses[index] >= self._attempts:
            raise Exhausted(f"lost {self._losses[index]} times")
        return self._again(index)

    def late(self, worker: Hashable) -> Item | None:
        """The worker is given up, as it takes too long; else as `lost`."""
        index, _ = self._leave(worker)
        late = self._late.setdefault(index, [])
        late.append(worker)
        if index not in self._done and len(late) >= self._delays:
            raise Exhausted(f"late {len(late)} times (on {', '.join(map(str, late))})")
        return self._again(index) if self._open(index) else None

    def _open(self, index: int) -> bool:
        """Whether it is neither done nor at any worker."""
        return index not in self._done and not self._runners.get(index)

    def _again(self, index: int) -> Item:
        heapq.heappush(self._waiting, index)
        return self._items[index]

    def _leave(self, worker: Hashable) -> tuple[int, float]:
        index, since = self._running.pop(worker)
        self._runners[index].discard(worker)
        if not self._runners[index]:
            del self._runners[index]
        return index, since

    def _late_first(self, now: float) -> int | None:
        """The first open item, where all wait for it and its worker takes much longer than usual."""
        runners = self._runners.get(self._first, ())
        if not self._in_order or len(runners) != 1:
            return None
        (worker,) = runners
        usual = self._usual(worker)
        return self._first if usual is not None and now - self._running[worker][1] > LATE * usual else None

    def _slowest(self, worker: Hashable, now: float) -> int | None:
        """The running item that would take longest, if this worker is likely to be done with it earlier."""
        mine = self._usual(worker)
        if mine is None:
            return None
        left = {
            index: min(self._left(runner, now) for runner in runners)
            for index, runners in self._runners.items()
            if len(runners) < COPIES and index not in self._done
        }
        slowest = max(left, key=lambda index: left[index], default=None)
        return slowest if slowest is not None and left[slowest] > mine else None

    def _left(self, worker: Hashable, now: float) -> float:
        """Seconds that a worker may still take. One that is late by a minute is taken to be late by another."""
        usual = self._usual(worker)
        return 0.0 if usual is None else abs(usual - (now - self._running[worker][1]))

    def _usual(self, worker: Hashable) -> float | None:
        """Seconds that an item takes this worker; the mean over all for one that has done none yet."""
        count, seconds = self._pace.get(worker, self._total)
        return seconds / count if count else None
