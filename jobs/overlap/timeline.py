"""Rounds on a clock of their own: the product's schedule hands out chunks, the trainer takes groups one after another.

Times are in seconds of that clock; evaluation takes none.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from dav_ray.config.partition import training_groups
from dav_ray.runtime.search.schedule import Schedule

ATTEMPTS = 10  # nobody is lost here
OVERLAPS = ("none", "stream", "round")


@dataclass(frozen=True)
class Load:
    """What a round takes."""

    paces: tuple[float, ...]  # seconds per chunk, by worker
    chunks: int
    group: int  # chunks per group of the trainer
    fit_s: float  # of the whole round, split evenly over the groups

    @property
    def groups(self) -> list[list[int]]:
        return training_groups(self.chunks, 1, self.group, 1)


@dataclass
class Pool:
    """Search workers, and when each of them is free."""

    paces: Sequence[float]
    free: list[float] = field(init=False)
    busy_s: float = 0.0

    def __post_init__(self) -> None:
        self.free = [0.0] * len(self.paces)

    def search(self, chunks: int, start: float, *, in_order: bool) -> list[float]:
        """When each chunk is there, if none starts before `start`. A worker whose chunk another was done with first
        goes on to its end, as a call to an actor does."""
        schedule = Schedule(range(chunks), ATTEMPTS, in_order=in_order)
        done = [0.0] * chunks
        asking = [(max(start, free), worker) for worker, free in enumerate(self.free)]
        heapq.heapify(asking)
        running: list[tuple[float, int, int]] = []  # end, worker, chunk
        while not schedule.finished:
            if asking and (not running or asking[0][0] <= running[0][0]):
                now, worker = heapq.heappop(asking)
                if (chunk := schedule.next(worker, now)) is not None:
                    heapq.heappush(running, (now + self.paces[worker], worker, chunk))
                    self.free[worker] = now + self.paces[worker]
                    self.busy_s += self.paces[worker]
                elif running:  # asks again once something has changed
                    heapq.heappush(asking, (running[0][0] + 1e-9, worker))
                continue
            now, worker, chunk = heapq.heappop(running)
            if schedule.complete(worker, now):
                done[chunk] = now
            heapq.heappush(asking, (now, worker))
        return done


@dataclass(frozen=True)
class Timeline:
    """policies: when the new policy of each round is there; busy: share of the time that a role worked."""

    policies: tuple[float, ...]
    search_busy: float
    train_busy: float

    @property
    def round_s(self) -> float:
        """Of the second half of the rounds: the first ones may differ."""
        half = len(self.policies) // 2
        return (self.policies[-1] - self.policies[half - 1]) / (len(self.policies) - half)


def run(load: Load, overlap: str, rounds: int) -> Timeline:
    pool, policies, searched = Pool(load.paces), [0.0], 0.0
    for number in range(1, rounds + 1):
        # the search waits for the policy that it uses; with `round` that of one round earlier is there by now
        start = max(searched, policies[max(0, number - 2)]) if overlap == "round" else policies[-1]
        done = pool.search(load.chunks, start, in_order=overlap == "stream")
        searched = max(done)
        policies.append(_fit(load, done, policies[-1], stream=overlap == "stream"))
    total = policies[-1]
    return Timeline(tuple(policies[1:]), pool.busy_s / (total * len(load.paces)), rounds * load.fit_s / total)


def _fit(load: Load, done: Sequence[float], now: float, *, stream: bool) -> float:
    """When the last group is trained on; the trainer is free at `now`."""
    for group in load.groups:
        ready = max(done[i] for i in group) if stream else max(done)
        now = max(now, ready) + load.fit_s / len(load.groups)
    return now


def workers(num: int = 16, chunk_s: float = 10.0) -> tuple[float, ...]:
    """Seconds per chunk of workers whose speeds differ up to fourfold."""
    return tuple(chunk_s * (1 + i % 4) for i in range(num))


def search_seconds(paces: Sequence[float], chunks: int) -> float:
    """Of one round on idle workers."""
    return max(Pool(paces).search(chunks, 0.0, in_order=False))


def time_to(share: float, curve: Sequence[float], policies: Sequence[float], final: float) -> float | None:
    """When `share` of the way from curve[0] to `final` is reached, rounds interpolated; None if it is not.

    curve: reward of the policy before the first round and after each.
    """
    goal = curve[0] + share * (final - curve[0])
    times = (0.0, *policies)
    for number in range(1, len(curve)):
        if curve[number] >= goal:
            rise = curve[number] - curve[number - 1]
            part = (goal - curve[number - 1]) / rise if rise > 0 else 1.0
            return times[number - 1] + part * (times[number] - times[number - 1])
    return None
