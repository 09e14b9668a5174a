"""Parts of a chunk that are searched in one process by turns: while one waits for its rewards, another computes.

Exactly one of them computes at any moment, so that they share the model; which one changes no result.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from dav_ray.diffusion.base import Diffusion
from dav_ray.types import Cost, Trajectories

Part = TypeVar("Part")
Found = TypeVar("Found")


class Turns:
    """The right to compute. The model counts evaluations: each part sees its own count."""

    def __init__(self, diffusion: Diffusion) -> None:
        self._diffusion, self._lock = diffusion, threading.Lock()
        self._failed = False

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Waits for its turn. Raises Abandoned where another part failed; a failure in here is told to the others."""
        self._lock.acquire()
        try:
            self._check()
            yield
        except BaseException:
            self._failed = True
            raise
        finally:
            self._lock.release()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Within `computing`: others may compute until the block is left."""
        spent = self._diffusion.cost
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()
            self._diffusion.cost = spent
        self._check()

    def _check(self) -> None:
        if self._failed:
            raise Abandoned


class Abandoned(Exception):
    """Another part failed."""


def in_turns(diffusion: Diffusion, parts: Sequence[Part], work: Callable[[Part, Turns], Found]) -> list[Found]:
    """work(part, turns) for every part, each in a thread of its own, which computes unless it says that it waits.
    Raises what the first part raised that failed by itself."""
    turns = Turns(diffusion)

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
