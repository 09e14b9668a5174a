"""Where the time of search workers goes: they compute, decoding among it, or wait for rewards; how fast they are."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from dav_ray.config.figures import Work
from dav_ray.runtime.cluster.peaks import peak
from dav_ray.types import Cost

if TYPE_CHECKING:
    from dav_ray.search.turns import Turns


@dataclass(frozen=True)
class Spent:
    """Of one work item. seconds: from its start to its end; waited_s: nothing was computed, as rewards had not yet
    answered; decoded_s: samples were decoded; kind: of the worker's device, a GPU's name or CPU; precision: of the
    network's products, float32, tf32, bfloat16 or float16; group: of its nodes, empty where Ray names none."""

    seconds: float = 0.0
    waited_s: float = 0.0
    decoded_s: float = 0.0
    kind: str = "CPU"
    precision: str = "float32"
    group: str = ""

    @property
    def computed_s(self) -> float:
        return max(0.0, self.seconds - self.waited_s)


class Meter:
    """A worker's clock. device: where its model is, `cuda` or `cpu`; precision: of its network's numbers; group: of its
    node."""

    def __init__(self, device: str, precision: str = "float32", group: str = "") -> None:
        import torch

        self._cuda, self._precision, self._group = device == "cuda", precision, group
        self._kind = torch.cuda.get_device_name() if self._cuda else "CPU"
        self._marks: list[tuple[Any, Any]] = []  # before and after each decoding
        self._began, self._waited_s = time.monotonic(), 0.0

    def start(self) -> None:
        self._marks.clear()
        self._began, self._waited_s = time.monotonic(), 0.0

    def read(self) -> Spent:
        """Since the start."""
        seconds = time.monotonic() - self._began
        decoded_s = sum(self._between(*pair) for pair in self._marks)
        return Spent(seconds, self._waited_s, decoded_s, self._kind, self._products(), self._group)

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

    def _products(self) -> str:
        from dav_ray.diffusion.exact import tf32_allowed

        return "tf32" if self._precision == "float32" and self._cuda and tf32_allowed() else self._precision

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
class Kind:
    """What was done on one kind of device. chunk_s: seconds of each item; computed_s: of these, all but waiting;
    possible: TFLOP that the device could do in them at its peak, NaN where that is not known."""

    chunk_s: list[float] = field(default_factory=list)
    cost: Cost = Cost()
    computed_s: float = 0.0
    possible: float = 0.0

    def add(self, spent: Spent, cost: Cost) -> None:
        known = peak(spent.kind)
        most = known.of(spent.precision) if known else None
        self.chunk_s.append(spent.seconds)
        self.cost, self.computed_s = self.cost + cost, self.computed_s + spent.computed_s
        self.possible += math.nan if most is None else most * spent.computed_s


@dataclass
class Ledger:
    """What was spent on several items, added up."""

    seconds: float = 0.0
    waited_s: float = 0.0
    decoded_s: float = 0.0
    kinds: dict[str, Kind] = field(default_factory=dict)  # by kind of device
    groups: dict[str, list[float]] = field(default_factory=dict)  # seconds of each item, by group of nodes

    def add(self, spent: Spent, cost: Cost) -> None:
        self.seconds += spent.seconds
        self.waited_s += spent.waited_s
        self.decoded_s += spent.decoded_s
        self.kinds.setdefault(spent.kind, Kind()).add(spent, cost)
        if spent.group:
            self.groups.setdefault(spent.group, []).append(spent.seconds)

    def metrics(self, work: Work | None) -> dict[str, float]:
        """Shares of the workers' time with chunks; the median chunk's seconds by kind of device and by group of nodes;
        how fast they computed. None without any chunk. work: of the model, as far as it is known."""
        if not self.seconds:
            return {}
        return {
            "search/reward_wait_share": self.waited_s / self.seconds,
            "search/decode_share": self.decoded_s / self.seconds,
            **{f"chunk_s/{_word(name)}": median(kind.chunk_s) for name, kind in self.kinds.items()},
            **{f"group_chunk_s/{_word(name)}": median(seconds) for name, seconds in self.groups.items()},
            **(self._speed(work) if work else {}),
        }

    def _speed(self, work: Work) -> dict[str, float]:
        """TFLOPS of a worker while it computes, mean over all; the share of its device's peak, by kind of device."""
        done = {name: work.of(kind.cost) for name, kind in self.kinds.items()}
        computed_s, known = sum(kind.computed_s for kind in self.kinds.values()), [n for n in done.values() if n]
        if len(known) < len(done) or not computed_s:
            return {}
        speed = {"search/tflops": sum(known) / 1e12 / computed_s}
        for (name, kind), flops in zip(self.kinds.items(), known, strict=True):
            if kind.possible > 0:  # not NaN
                speed[f"peak_share/{_word(name)}"] = flops / 1e12 / kind.possible
        return speed


def _word(name: str) -> str:
    return "_".join(name.replace("/", "_").split())
