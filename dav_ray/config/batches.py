"""Batch sizes by throughput and memory: which sizes are tried, which one is taken, what follows for the chunk.

A call on n rows takes seconds(n) and, at its peak, bytes(n); its throughput is n / seconds(n). Sizes double until more
rows gain nothing, do not fit, or take too long; the smallest size is taken whose throughput is nearly the best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

from dav_ray.config.schema import Config

LARGEST = 1024  # rows
ENOUGH = 0.95  # of the best throughput
GAIN = 1.03  # of throughput by a doubling; two that bring less end the search
SHARE = 0.9  # of the memory that a role's actor has
TRAINED = 16  # bytes of a trained parameter beside its value: gradient 4, AdamW's moments 8, DDP's bucket 4
LONGEST_S = 20.0  # of a call; larger ones are not tried
CHUNKS_EACH = 3  # per search worker: with fewer, workers of unequal speed wait for the slowest at a round's end


@dataclass(frozen=True)
class Measured:
    """A call on `size` rows: seconds, and bytes of memory at its peak."""

    size: int
    seconds: float
    peak: float

    @property
    def rate(self) -> float:
        """Rows per second."""
        return self.size / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class Batches:
    """The sizes of a run, by their keys in the configuration."""

    chunk: int  # search.chunk: trajectories
    micro_batch: int  # search.micro_batch: states
    decode_batch: int  # search.decode_batch: states
    train: int  # mstep.micro_batch: transitions

    @classmethod
    def of(cls, config: Config) -> Batches:
        search = config.search
        return cls(search.chunk, search.micro_batch, search.decode_batch, config.mstep.micro_batch)

    def __str__(self) -> str:
        return ", ".join(f"{key} {size}" for key, size in self.by_key().items())

    def by_key(self) -> dict[str, int]:
        return {
            "search.chunk": self.chunk,
            "search.micro_batch": self.micro_batch,
            "search.decode_batch": self.decode_batch,
            "mstep.micro_batch": self.train,
        }


def grow(measure: Callable[[int], Measured | None], limit: float, most: int) -> list[Measured]:
    """What was measured, for 1, 2, 4, ... rows. measure: None where memory runs out; limit: bytes, which no size is to
    pass as it is foreseen from the two before it; most: rows, as many as there ever are."""
    found: list[Measured] = []
    size = 1
    while size <= LARGEST and size < 2 * most and _foreseen(found, size) <= limit:
        one = measure(size)
        if one is None:
            break
        found.append(one)
        if one.seconds > LONGEST_S or _flat(found):
            break
        size *= 2
    return found


def choose(measured: Sequence[Measured]) -> int:
    """The smallest size with ENOUGH of the best throughput. ValueError where nothing was measured."""
    best = max(one.rate for one in measured)
    return min(one.size for one in measured if one.rate >= ENOUGH * best)


def states_per_trajectory(config: Config) -> int:
    """States of an accepted trajectory that go through the network together."""
    return config.search.facts.states


def largest_chunk(config: Config) -> int:
    """Trajectories, so that every search worker gets enough chunks; not fewer than the ranks need in a group."""
    search, roles = config.search, config.roles
    shared = ceil(search.trajectories / (CHUNKS_EACH * roles.search.replicas))
    return min(search.trajectories, max(shared, ceil(roles.train.replicas / config.mstep.group)))


def too_few_chunks(config: Config) -> str:
    """What is to be said where a round has so few chunks that search workers, at most as many as the pool may grow to,
    stand idle; else nothing. Two workers without a GPU are left alone: what they could gain costs little."""
    search, workers = config.search, config.roles.search.replicas
    chunks, needed = ceil(search.trajectories / search.chunk), CHUNKS_EACH * workers
    small_pool = workers == 1 or (workers == 2 and not config.roles.search.gpus)
    if chunks >= needed or small_pool or config.batches == "probed":
        return ""
    idle = f", {workers - chunks} of which get none" if chunks < workers else ""
    said = f"{chunks} chunks per round for {workers} search workers{idle}: from {needed} on they stay busy; set "
    if (least := max(1, search.trajectories // needed)) == search.chunk:
        fewer = max(1, chunks // CHUNKS_EACH)
        return f"{said}search.trajectories = {needed * least} or roles.search.replicas = {fewer}"
    more = f" and search.trajectories = {needed}" if search.trajectories < needed else ""
    group = ceil(config.mstep.group * search.chunk / least)
    return f"{said}search.chunk = {least}{more}; mstep.group = {group} keeps the trainer's groups about as large"


def chunk_for(config: Config, micro_batch: int) -> int:
    """Trajectories whose states fill a micro-batch, within what workers and ranks need."""
    least = ceil(config.roles.train.replicas / config.mstep.group)
    return min(largest_chunk(config), max(least, ceil(micro_batch / states_per_trajectory(config))))


def _foreseen(found: Sequence[Measured], size: int) -> float:
    """Bytes, on the line through the last two sizes; 0 where there are none yet."""
    if len(found) < 2:
        return 0.0
    before, last = found[-2:]
    return last.peak + max(0.0, last.peak - before.peak) / (last.size - before.size) * (size - last.size)


def _flat(found: Sequence[Measured]) -> bool:
    gains = [b.rate / a.rate for a, b in zip(found, found[1:], strict=False)]
    return len(gains) >= 2 and max(gains[-2:]) < GAIN
