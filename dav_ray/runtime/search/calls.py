"""Calls of search workers that have not been answered, and how long each of them has been waited for. Pure: what stands
for a call may be anything that a dictionary takes; the clock is an argument.

A worker has two at most: it computes one while it stores what it found in the other.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

AT_ONCE = 2  # calls of a worker


@dataclass
class Call:
    """table: a reference to the first result; since: when the worker could start it, in seconds of a clock that does
    not go back: as it was sent, or as the worker gave its last answer."""

    worker: str
    item: Any
    table: Any
    since: float
    stopped: bool = False  # the worker was told to leave it
    overtaken: bool = False  # a later call was answered before it


class Calls:
    """By the reference that stands for the answer, in the order in which they were sent."""

    def __init__(self) -> None:
        self._calls: dict[Hashable, Call] = {}
        self._of: dict[str, list[Hashable]] = {}  # worker -> its calls

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._calls)

    def __contains__(self, ref: object) -> bool:
        return ref in self._calls

    @property
    def workers(self) -> set[str]:
        return set(self._of)

    def add(self, ref: Hashable, call: Call) -> None:
        self._calls[ref] = call
        self._of.setdefault(call.worker, []).append(ref)

    def of(self, worker: str) -> list[tuple[Any, Call]]:
        """Those of a worker, the first one first."""
        return [(ref, self._calls[ref]) for ref in self._of.get(worker, ())]

    def at(self, item: Any) -> list[tuple[Any, Call]]:
        """Those of an item."""
        return [(ref, call) for ref, call in self._calls.items() if call.item is item]

    def answered(self, ref: Hashable, now: float) -> Call:
        """The call, which is none of them any more. The worker's other one has all of its time from now on; if it was
        sent before, only once, lest a call that hangs be overtaken for ever."""
        call = self._calls.pop(ref)
        mine = self._of[call.worker]
        earlier = mine[: mine.index(ref)]
        mine.remove(ref)
        if not mine:
            del self._of[call.worker]
        for other in mine:
            rest = self._calls[other]
            if other not in earlier or not rest.overtaken:
                rest.since, rest.overtaken = now, rest.overtaken or other in earlier
        return call

    def drop(self, worker: str) -> list[Call]:
        """All calls of a worker that gives no answer any more, the first one first."""
        return [self._calls.pop(ref) for ref in self._of.pop(worker, ())]

    def overdue(self, now: float, limit_s: float) -> list[Call]:
        """One call at most of each worker: the first one that is waited for longer than this."""
        found: dict[str, Call] = {}
        for call in self._calls.values():
            if now - call.since > limit_s:
                found.setdefault(call.worker, call)
        return list(found.values())

    def take(self, others: Calls) -> None:
        """Those of another collection too."""
        for ref, call in others._calls.items():
            self.add(ref, call)
