"""What a search worker asked, the answers to its parts until they are one, and which parts are to be asked again."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dav_ray.errors import DavRayError, RunError
from dav_ray.rewards.base import Scored, wrong_shape
from dav_ray.rewards.faults.patience import Patience
from dav_ray.runtime.reward.batching import Request

BREAKS = 3  # replicas whose device fails, or has no room for one sample, before that is the reward's answer

Span = tuple[Any, int, int]  # an array or a reference to it, and which of its rows: from, to


class Asked:
    """One request of a search worker.

    pieces: its samples in order, arrays or references to them, each with its number of rows.
    """

    def __init__(self, pieces: Sequence[tuple[Any, int]], conditions: Sequence[str], grad: bool) -> None:
        self.grad = grad
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pieces, self._conditions = pieces, conditions
        self._parts: dict[int, tuple[Scored, Any]] = {}  # by their first row
        self._answered = 0

    @property
    def over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.answer.done()

    def spans(self, start: int, num: int) -> list[Span]:
        """Where `num` samples from `start` on are."""
        found, at = [], 0
        for piece, rows in self._pieces:
            low, high = max(start - at, 0), min(start + num - at, rows)
            if low < high or not num:
                found.append((piece, low, high))
            at += rows
        return found

    def conditions(self, start: int, num: int) -> Sequence[str]:
        return self._conditions[start : start + num]

    def add(self, start: int, num: int, scored: Scored, grads: Any) -> None:
        """The answer to a part; grads: a reference. What ends a part ends the whole."""
        if self.over:
            return
        if num == len(self._conditions):
            self.finish(scored, [grads])
        elif scored.error is not None:
            self.finish(scored, [])
        elif wrong := wrong_shape(scored, num):
            self.finish(Scored(error=wrong), [])
        else:
            self._parts[start] = scored, grads
            self._answered += num
            if self._answered == len(self._conditions):
                self._join()

    def _join(self) -> None:
        parts = [self._parts[start] for start in sorted(self._parts)]
        values = np.concatenate([scored.values for scored, _ in parts if scored.values is not None])
        self.finish(dataclasses.replace(parts[0][0], values=values), [grads for _, grads in parts])

    def finish(self, scored: Scored, grads: Sequence[Any]) -> None:
        if not self.over:
            self.answer.set_result((scored, list(grads)) if self.grad else scored)

    def lose(self) -> None:
        """The samples are lost."""
        if not self.over:
            self.answer.set_result(None)

    def fail(self, error: DavRayError) -> None:
        if not self.over:
            self.answer.set_exception(error)


class Answers:
    """Passes what replicas answer on to who asked. event(name, **fields): told of what is asked again."""

    def __init__(self, label: str, retry_s: float, event: Callable[..., None]) -> None:
        self._label, self._retry_s, self._event = label, retry_s, event

    def settle(self, replica: str, request: Request, scored: Scored | None, grads: Any) -> list[Request]:
        """What of the request is to be asked again. scored: None where its samples are lost; grads: a reference."""
        request.done = True
        if scored is None:
            request.content.lose()
            return []
        if scored.fault is None:
            request.content.add(request.start, request.num, scored, grads)
            return []
        got = 0 if scored.values is None else len(scored.values)
        rest = request.rest(got)
        if got:
            request.content.add(request.start, got, Scored(scored.values), grads)
            rest.patience = None
        goes_on = self._later(replica, rest, scored) if scored.fault == "transient" else _elsewhere(rest, scored)
        return [rest] if goes_on else []

    def pause(self, replica: str, patience: Patience, scored: Scored) -> float | None:
        """Seconds until a replica may be asked again that can't answer for now; None: it was asked for long enough."""
        pause_s = patience.pause(time.monotonic(), random.random(), scored.retry_after_s)
        if pause_s is not None:
            self._event("reward_retried", replica=replica, **patience.told(pause_s, scored.error))
        return pause_s

    def _later(self, replica: str, rest: Request, scored: Scored) -> bool:
        """Whether the request waits; if not, it has failed."""
        rest.patience = rest.patience or Patience(self._retry_s)
        pause_s = self.pause(replica, rest.patience, scored)
        if pause_s is not None:
            rest.not_before = time.monotonic() + pause_s
            return True
        words = f"no answer in {self._retry_s:g} s of asking again (roles.reward.retry_s)"
        failure = RunError("reward", f"{self._label}: {words}: {scored.error}")
        failure.trace = scored.trace
        rest.content.fail(failure)
        return False


def _elsewhere(rest: Request, scored: Scored) -> bool:
    """Whether another replica is asked; if not, the error is the answer."""
    rest.broken += 1
    if rest.broken >= BREAKS:
        rest.content.finish(Scored(error=scored.error, trace=scored.trace), [])
    return rest.broken < BREAKS


def breakage(found: Sequence[Scored | None]) -> str | None:
    """Why the replica that gave these answers is of no more use; None: it is."""
    faults = (scored for scored in found if scored is not None and scored.fault in ("memory", "device"))
    return next((scored.error for scored in faults), None)


def most(requests: Sequence[Request]) -> int | None:
    """Samples of a call of requests with which replicas were ended for want of memory; None: no such limit."""
    halvings = max(request.halvings for request in requests)
    return math.ceil(sum(request.num for request in requests) / 2**halvings) if halvings else None
