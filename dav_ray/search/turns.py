"""Parts of a chunk that are searched in one process by turns: while one waits for its rewards, another computes.

Exactly one of them computes at any moment, so that they share the model; which one changes no result.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from dav_ray.diffusion.base import Diffusion
from dav_ray.types import Cost, Trajectories

Part = TypeVar("Part")
Found = TypeVar("Found")


class Turns:
    """The right to compute. The model counts evaluations: each part sees its own count.

    computed_s: seconds in which one of the parts computed; in the others all of them waited."""

    def __init__(self, diffusion: Diffusion) -> None:
        self._diffusion, self._lock = diffusion, threading.Lock()
        self._failed = False
        self._since, self.computed_s = 0.0, 0.0

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Waits for its turn. Raises Abandoned where another part failed; a failure in here is told to the others."""
        self._take()
        try:
            self._check()
            yield
        except BaseException:
            self._failed = True
            raise
        finally:
            self._give()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Within `computing`: others may compute until the block is left."""
        spent = self._diffusion.cost
        self._give()
        try:
            yield
        finally:
            self._take()
            self._diffusion.cost = spent
        self._check()

    def _take(self) -> None:
        self._lock.acquire()
        self._since = time.monotonic()

    def _give(self) -> None:
        self.computed_s += time.monotonic() - self._since
        self._lock.release()

    def _check(self) -> None:
        if self._failed:
            raise Abandoned


class Abandoned(Exception):
    """Another part failed."""


def in_turns(turns: Turns, parts: Sequence[Part], work: Callable[[Part, Turns], Found]) -> list[Found]:
    """work(part, turns) for every part, each in a thread of its own, which computes unless it says that it waits.
    Raises what the first part raised that failed by itself."""

    def one(part: Part) -> Found:
        with turns.computing():
            return work(part, turns)

    with ThreadPoolExecutor(len(parts), thread_name_prefix="search") as pool:
        started = [pool.submit(one, part) for part in parts]
    failures = [error for each in started if (error := each.exception()) is not None]
    for error in failures:
        if not isinstance(error, Abandoned):
            raise error
    return [each.result() for each in started]


def join(parts: Sequence[Trajectories]) -> Trajectories:
    """The trajectories of searches with the same settings, in order."""

    def cat(name: str, dim: int = 0) -> Any:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values, dim)

    whole = cat("states", 1), cat("targets", 1), cat("sample"), cat("reward"), cat("log_weight"), cat("ess")
    cost, last = sum((part.cost for part in parts), Cost()), {"each": cat("each"), "choices": cat("choices")}
    return Trajectories(*whole, cost, cat("step_ess", 1), **last)
