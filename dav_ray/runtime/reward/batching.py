"""Requests that wait for a reward, in order of arrival, and which of them go in one call; pure.

Times are seconds of any clock that does not go back.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(eq=False)
class Request:
    """Samples of one search worker that are to be scored."""

    num: int  # samples
    alike: Hashable  # only requests of which this is equal go in one call: a sample's type and shape, gradients or not
    since: float  # arrival
    content: Any = None  # what a replica gets
    stuck: int = 0  # calls without an answer in time
    lost: int = 0  # replicas that died with it

    @property
    def returned(self) -> bool:
        return self.stuck + self.lost > 0


class Queue:
    """batch: most samples of a merged call, None: no limit; merge: several requests may go in one call."""

    def __init__(self, batch: int | None, merge: bool) -> None:
        self._batch, self._merge = batch, merge
        self._waiting: list[Request] = []

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def oldest(self) -> float | None:
        """Arrival of who waits longest."""
        return min((request.since for request in self._waiting), default=None)

    def add(self, request: Request) -> None:
        self._waiting.append(request)

    def put_back(self, requests: Iterable[Request]) -> None:
        """Before all others, in this order."""
        self._waiting[:0] = requests

    def take(self) -> list[Request]:
        """What the next call scores: the first request, whatever its size, and with `merge` the later ones like it
        that fit. One that came back goes alone: what it met may have been too much at once. IndexError if nothing
        waits."""
        taken = [self._waiting.pop(0)]
        if not self._merge or taken[0].returned:
            return taken
        total, rest = taken[0].num, []
        for request in self._waiting:
            fits = self._batch is None or total + request.num <= self._batch
            if fits and request.alike == taken[0].alike and not request.returned:
                total += request.num
                taken.append(request)
            else:
                rest.append(request)
        self._waiting = rest
        return taken

    def remove(self, since: float) -> list[Request]:
        """Take out all that arrived at `since` or before."""
        gone = [request for request in self._waiting if request.since <= since]
        self._waiting = [request for request in self._waiting if request.since > since]
        return gone
