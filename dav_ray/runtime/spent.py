"""Where the time of search workers goes: they compute, decoding among it, or wait for rewards."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dav_ray.search.turns import Turns


@dataclass(frozen=True)
class Spent:
    """Of one work item. seconds: from its start to its end; waited_s: nothing was computed, as rewards had not yet
    answered; decoded_s: samples were decoded; kind: of the worker's device, a GPU's name or CPU."""

    seconds: float = 0.0
    waited_s: float = 0.0
    decoded_s: float = 0.0
    kind: str = "CPU"


class Meter:
    """A worker's clock. device: where its model is, `cuda` or `cpu`."""

    def __init__(self, device: str) -> None:
        import torch

        self._cuda = device == "cuda"
        self._kind = torch.cuda.get_device_name() if self._cuda else "CPU"
        self._marks: list[tuple[Any, Any]] = []  # before and after each decoding
        self._began, self._waited_s = time.monotonic(), 0.0

    def start(self) -> None:
        self._marks.clear()
        self._began, self._waited_s = time.monotonic(), 0.0

    def read(self) -> Spent:
        """Since the start."""
        seconds = time.monotonic() - self._began
        return Spent(seconds, self._waited_s, sum(self._between(*pair) for pair in self._marks), self._kind)

    @contextlib.contextmanager
    def all_but(self, turns: Turns) -> Iterator[None]:
        """All of the block in which none of the parts computes is waiting."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._waited_s += max(0.0, time.monotonic() - began - turns.computed_s)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._waited_s += time.monotonic() - began

    def watched(self, decode: Callable[..., Any]) -> Callable[..., Any]:
        """The same, timed. A GPU is not waited for: marks are put between its kernels."""

        @functools.wraps(decode)
        def timed(*words: Any, **options: Any) -> Any:
            before = self._mark()
            found = decode(*words, **options)
            self._marks.append((before, self._mark()))
            return found

        return timed

    def _mark(self) -> Any:
        if not self._cuda:
            return time.monotonic()
        import torch

        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        return mark

    def _between(self, before: Any, after: Any) -> float:
        if not self._cuda:
            return after - before
        after.synchronize()
        return before.elapsed_time(after) / 1000


@dataclass
class Ledger:
    """What was spent on several items, added up."""

    seconds: float = 0.0
    waited_s: float = 0.0
    decoded_s: float = 0.0
    kinds: dict[str, tuple[int, float]] = field(default_factory=dict)  # kind of device -> items, seconds

    def add(self, spent: Spent) -> None:
        self.seconds += spent.seconds
        self.waited_s += spent.waited_s
        self.decoded_s += spent.decoded_s
        items, seconds = self.kinds.get(spent.kind, (0, 0.0))
        self.kinds[spent.kind] = items + 1, seconds + spent.seconds

    def metrics(self) -> dict[str, float]:
        """Shares of the workers' time with chunks; seconds of a chunk by kind of device. None without any."""
        if not self.seconds:
            return {}
        shares = {
            "search/reward_wait_share": self.waited_s / self.seconds,
            "search/decode_share": self.decoded_s / self.seconds,
        }
        words = {kind: "_".join(kind.replace("/", "_").split()) for kind in self.kinds}
        return shares | {f"chunk_s/{words[kind]}": seconds / items for kind, (items, seconds) in self.kinds.items()}
