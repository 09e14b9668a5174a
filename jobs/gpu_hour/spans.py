"""Named spans of time: by CUDA events where a GPU works, else by the clock."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

Span = tuple[str, float, float]  # name, from and to, in seconds since the beginning


class Spans:
    """On a GPU a span begins when the card has done all that it was given before, and ends likewise: what lies between
    two spans of work is time in which the card waited."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self._marks: list[tuple[str, Any, Any]] = []
        self.begin()

    def begin(self) -> None:
        """Forget what was seen; time counts from now on."""
        if self._cuda:
            torch.cuda.synchronize()
        self._marks, self._zero = [], self._now()

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        start = self._now()
        try:
            yield
        finally:
            self._marks.append((name, start, self._now()))

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        def call(*args: Any, **options: Any) -> Any:
            with self.span(name):
                return work(*args, **options)

        return call

    def read(self) -> list[Span]:
        if self._cuda:
            torch.cuda.synchronize()
        return [(name, self._since(a), self._since(b)) for name, a, b in self._marks]

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _since(self, mark: Any) -> float:
        return self._zero.elapsed_time(mark) / 1000 if self._cuda else mark - self._zero


def covered(spans: Sequence[Span], names: Sequence[str]) -> float:
    """Seconds in which at least one span of these names went on."""
    total, until = 0.0, float("-inf")
    for _, start, end in sorted((s for s in spans if s[0] in names), key=lambda s: s[1]):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
