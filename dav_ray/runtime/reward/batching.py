"""Requests that wait for a reward, in order of arrival, and which of them go in one call; pure.

Times are seconds of any clock that does not go back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from dav_ray.rewards.faults.patience import Patience

ANYWHERE = 8  # samples of the smallest part, where a request may be cut anywhere


@dataclass(eq=False)
class Request:
    """Samples of one search worker that are to be scored: all that it sent, or a part."""

    num: int  # samples
    alike: Hashable  # only requests of which this is equal go in one call: a sample's type and shape, gradients or not
    since: float  # arrival
    content: Any = None  # what a replica gets
    start: int = 0  # its first sample, of those that the worker sent
    stuck: int = 0  # calls without an answer in time
    lost: int = 0  # replicas that died with it
    broken: int = 0  # replicas whose device failed under it
    halvings: int = 0  # replicas that were ended for want of memory with it
    patience: Patience | None = None  # since it was refused for now
    not_before: float = -math.inf
    done: bool = False

    @property
    def returned(self) -> bool:
        return self.stuck + self.lost + self.broken > 0 or self.patience is not None

    def rest(self, num: int) -> Request:
        """What comes after the first `num` samples, and has met the same."""
        patience = None if self.patience is None else replace(self.patience)
        return replace(self, num=self.num - num, start=self.start + num, patience=patience, done=False)


class Queue:
    """batch: most samples of a merged call, None: no limit; merge: several requests may go in one call.

    unit: a request may be cut after every so many samples, None: nowhere. Cut after a batch, it is scored in the same
    calls as if it were whole, and has the same values to the last bit.
    """

    def __init__(self, batch: int | None, merge: bool) -> None:
        self._batch, self._merge = batch, merge
        self.unit = batch
        self._waiting: list[Request] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def ready(self, now: float) -> int:
        """How many may be taken."""
        return sum(request.not_before <= now for request in self._waiting)

    def oldest(self, now: float = math.inf) -> float | None:
        """Arrival of who waits longest, of those that may be taken."""
        return min((request.since for request in self._waiting if request.not_before <= now), default=None)

    def add(self, request: Request) -> None:
        self._waiting.append(request)

    def put_back(self, requests: Iterable[Request]) -> None:
        """Before all others, in this order."""
        self._waiting[:0] = requests

    def take(self, now: float = math.inf, free: int = 1) -> list[Request]:
        """What the next call scores: the first request, whatever its size, and with `merge` the later ones like it
        that fit. One that came back goes alone: what it met may have been too much at once. free: replicas that have
        nothing to do, of which more than there are requests share the first one. IndexError if nothing may be taken."""
        ready = [request for request in self._waiting if request.not_before <= now]
        first = ready[0]
        taken = [first]
        share = self._share(first.num, max(1, free // len(ready)))
        if share < first.num:
            self._waiting[self._waiting.index(first)] = first.rest(share)
            first.num = share
            return taken
        if self._merge and not first.returned:
            taken += self._fitting(first, ready[1:])
        self._waiting = [request for request in self._waiting if request not in taken]
        return taken

    def _share(self, num: int, shares: int) -> int:
        if self.unit is None:
            return num
        return self.unit * math.ceil(math.ceil(num / self.unit) / shares)

    def _fitting(self, first: Request, others: Iterable[Request]) -> list[Request]:
        total, found = first.num, []
        for request in others:
            fits = self._batch is None or total + request.num <= self._batch
            if fits and request.alike == first.alike and not request.returned:
                total += request.num
                found.append(request)
        return found

    def remove(self, since: float) -> list[Request]:
        """Take out all that arrived at `since` or before."""
        gone = [request for request in self._waiting if request.since <= since]
        self._waiting = [request for request in self._waiting if request.since > since]
        return gone

    def forget(self, needless: Callable[[Request], bool]) -> None:
        """Take out what nobody waits for any more."""
        self._waiting = [request for request in self._waiting if not needless(request)]
