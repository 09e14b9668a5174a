"""Who does what next: pull scheduling of work items, pure; the clock is an argument.

A worker asks when it is free, so that fast ones do more. It may have one more item at hand, which it starts when the
first one ends. The lowest index is handed out first; what a lost worker had is handed out again. At a round's end a
free worker doubles what another is slow with, or has not started: the first result counts.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from dav_ray.runtime.search.calls import AT_ONCE

Item = TypeVar("Item")

COPIES = 2  # workers on one item at most
LATE = 2.0  # times a worker's usual time after which the first open item is doubled although others wait


class Exhausted(Exception):
    """An item was lost, or late, too often."""


@dataclass
class _Held:
    """An item that a worker has. since: when it started, or was handed out if it is not the worker's first one."""

    index: int
    since: float


class Schedule(Generic[Item]):
    """items in the order in which they are to start; `attempts`: how often one may be lost before `Exhausted`,
    `delays`: how often late; in_order: who consumes the results waits for the first open item, which is doubled when
    it is late. now: seconds of any clock that does not go back. item: which of those that the worker has; None: the
    first one."""

    def __init__(self, items: Sequence[Item], attempts: int, delays: int = 3, *, in_order: bool = False) -> None:
        self._items = list(items)
        self._attempts, self._delays, self._in_order = attempts, delays, in_order
        self._waiting = list(range(len(items)))  # a heap of indices
        self._held: dict[Hashable, list[_Held]] = {}  # worker -> the item that it is at, and the next one
        self._runners: dict[int, set[Hashable]] = {}  # item -> workers
        self._alone: set[int] = set()  # items with which a worker was lost
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
        if worker in self._held:
            raise ValueError(f"worker {worker} is busy")
        index = self._late_first(now, worker)
        if index is None:
            index = heapq.heappop(self._waiting) if self._waiting else self._slowest(worker, now)
        return None if index is None else self._hand(worker, index, now)

    def ahead(self, worker: Hashable, now: float) -> Item | None:
        """The item that this busy worker starts as soon as it is done with the one that it has; None if nothing waits,
        or it has two. An item with which a worker was lost goes alone: so it is known what ends workers."""
        held, late = self._held[worker], self._late_first(now, worker)
        index = late if late is not None else self._waiting[0] if self._waiting else None
        if index is None or len(held) == AT_ONCE or not self._alone.isdisjoint({held[0].index, index}):
            return None
        if late is None:
            heapq.heappop(self._waiting)
        return self._hand(worker, index, now)

    def doubled(self, worker: Hashable, item: Item | None = None) -> bool:
        """Whether another worker has this item too."""
        return len(self._runners[self._of(worker, item).index]) > 1

    def complete(self, worker: Hashable, now: float, item: Item | None = None) -> bool:
        """The worker is done with an item. False if another was done with it before: this result does not count."""
        held = self._leave(worker, item, now)
        count, seconds = self._pace.get(worker, (0, 0.0))
        self._pace[worker] = count + 1, seconds + now - held.since
        self._total = self._total[0] + 1, self._total[1] + now - held.since
        if held.index in self._done:
            return False
        self._done.add(held.index)
        while self._first in self._done:
            self._first += 1
        return True

    def returned(self, worker: Hashable, now: float, item: Item | None = None) -> Item | None:
        """The worker was told to leave an item, which is returned if it waits again."""
        index = self._leave(worker, item, now).index
        return self._again(index) if self._open(index) else None

    def lost(self, worker: Hashable, item: Item | None = None, *, counts: bool = True) -> Item | None:
        """The worker is gone; its item is returned if it waits again, None if someone else has or had it. Exhausted if
        it was lost too often, times that don't count left out."""
        index = self._leave(worker, item).index
        self._alone.add(index)
        if not self._open(index):
            return None
        self._losses[index] += counts
        if self._losses[index] >= self._attempts:
            raise Exhausted(f"lost {self._losses[index]} times")
        return self._again(index)

    def late(self, worker: Hashable, item: Item | None = None) -> Item | None:
        """The worker is given up, as it takes too long; else as `lost`."""
        index = self._leave(worker, item).index
        self._alone.add(index)
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

    def _hand(self, worker: Hashable, index: int, now: float) -> Item:
        self._held.setdefault(worker, []).append(_Held(index, now))
        self._runners.setdefault(index, set()).add(worker)
        return self._items[index]

    def _of(self, worker: Hashable, item: Item | None) -> _Held:
        held = self._held[worker]
        return held[0] if item is None else next(one for one in held if self._items[one.index] == item)

    def _leave(self, worker: Hashable, item: Item | None, now: float | None = None) -> _Held:
        """now: when the worker goes on with what it has at hand; None: it does not."""
        left, held = self._of(worker, item), self._held.pop(worker)
        rest = [one for one in held if one is not left]
        if rest:
            self._held[worker] = rest
        if rest and now is not None and left is held[0]:
            rest[0].since = now
        self._runners[left.index].discard(worker)
        if not self._runners[left.index]:
            del self._runners[left.index]
        return left

    def _late_first(self, now: float, helper: Hashable) -> int | None:
        """The first open item, where all wait for it and its worker, another one, takes much longer than usual."""
        runners = self._runners.get(self._first, ())
        if not self._in_order or len(runners) != 1 or helper in runners:
            return None
        (worker,) = runners
        usual, first = self._usual(worker), self._items[self._first]
        return self._first if usual is not None and now - self._of(worker, first).since > LATE * usual else None

    def _slowest(self, worker: Hashable, now: float) -> int | None:
        """The item that would take others longest, if this worker is likely to be done with it earlier."""
        left = {
            index: min(self._left(runner, index, now) for runner in runners)
            for index, runners in self._runners.items()
            if len(runners) < COPIES and index not in self._done
        }
        slowest = max(left, key=lambda index: left[index], default=None)
        return slowest if slowest is not None and left[slowest] > (self._usual(worker) or 0.0) else None

    def _left(self, worker: Hashable, index: int, now: float) -> float:
        """Seconds until a worker may be done with an item. One that is late by a minute is taken to be late by another.
        Before anything is known: no time for what runs, and no end of what has not started."""
        usual, first = self._usual(worker), self._held[worker][0]
        started = first.index == index
        if usual is None:
            return 0.0 if started else math.inf
        return abs(usual - (now - first.since)) + (0.0 if started else usual)

    def _usual(self, worker: Hashable) -> float | None:
        """Seconds that an item takes this worker; the mean over all for one that has done none yet."""
        count, seconds = self._pace.get(worker, self._total)
        return seconds / count if count else None
