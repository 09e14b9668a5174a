"""A reward that answers late: how much of the search's time goes into waiting, as the run's own metric reports it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from dav_ray.runtime.cluster.connect import connected
from dav_ray.types import Chunk
from jobs.performance.options import Found, Options
from jobs.performance.parts.search import search
from jobs.performance.pipeline import Pipeline, beside_others
from jobs.performance.timing import Series, in_turn, seconds
from jobs.performance.workloads import Workload, configuration, workload
from jobs.tables import Table

NAME, CHUNK = "digits", 8  # workload, trajectories of a chunk
REPLICAS = 2  # of the reward: it answers two requests at a time, as a service does
SHARE = "search/reward_wait_share"
ROWS = (("pool", 1), ("pool", 2), ("search", 1))  # reward.where, search.parts


@dataclass
class Waiting:
    """One way to search the same chunk. chunk_s: seconds of a chunk through the pipeline; share: of the worker's time,
    waited for the reward."""

    where: str
    parts: int
    latency_s: float  # of the reward, per request
    chunk_s: Series = Series(())
    share: Series = Series(())

    def row(self, first: Waiting) -> tuple[str, ...]:
        times = self.chunk_s.show(), self.share.show(), self.chunk_s.over(first.chunk_s).show()
        return self.where, str(self.parts), f"{self.latency_s:.3g}", *times


HEADER = (
    *("reward.where", "search.parts", "reward, s per request"),
    *("s per chunk", "reward-wait share", "s per chunk / first row"),
)


@dataclass
class Turn:
    """A pipeline's turn; shares: of all its turns, the warm-up among them."""

    through: Pipeline
    chunk: Chunk
    shares: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        took = self.through.seconds(self.chunk, 1)
        self.shares.append(self.through.ledger.metrics(None)[SHARE])
        return took


def run(options: Options) -> Found:
    measured = measure(options)
    rows = tuple(each.row(measured[0]) for each in measured)
    return Found([Table("Waiting for a reward, digits", HEADER, rows)], measured)


def measure(options: Options, words: Sequence[str] = ()) -> list[Waiting]:
    """Of all rows, which take turns on one Ray. words: changes of the workload."""
    words = [f"search.chunk={CHUNK}", f"search.trajectories={CHUNK}", *words]
    plain = workload(NAME, options.out, options.device, [*words, *late(0.0, *ROWS[0])])
    latency = step_seconds(plain)
    with contextlib.ExitStack() as stack:
        stack.enter_context(connected("local", plain.config))
        turns: dict[str, Turn] = {}
        for where, parts in ROWS:
            own = [*words, *late(latency, where, parts)]
            config = configuration(NAME, options.out, options.device, own)
            through = stack.enter_context(beside_others(config, f"{where}-{parts}", options.out))
            turns[f"{where}, {parts}"] = Turn(through, plain.chunk)
        contenders: dict[str, Callable[[], float]] = {**turns}
        times = in_turn(contenders, options.turns)
    return [
        Waiting(where, parts, latency, times[name], Series(tuple(turn.shares[1:])))
        for (where, parts), (name, turn) in zip(ROWS, turns.items(), strict=True)
    ]


def step_seconds(work: Workload) -> float:
    """What network and decoder take for a step of the chunk; the reward takes next to nothing."""
    with torch.no_grad():
        search(work)
        return min(seconds(lambda: search(work), work.device) for _ in range(3)) / work.config.search.steps


def late(latency: float, where: str, parts: int) -> list[str]:
    """The overrides of a row. CPUs are declared so small that all rows have their actors at the same time."""
    reward = f"{{kind: jobs.performance.slow_reward:SlowReward, args: {{latency: {latency}}}, where: {where}}}"
    roles = [f"roles.reward.replicas={REPLICAS}", "roles.reward.cpus=0.1", "roles.search.cpus=0.2"]
    return [f"reward={reward}", f"search.parts={parts}", *roles]
