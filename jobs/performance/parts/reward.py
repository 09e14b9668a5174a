"""A remote reward as dear as the network: how much of the slower of the two is left in the pipeline's throughput."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from jobs.performance.options import Found, Options, measure_each
from jobs.performance.parts.search import pipeline_chunks, search
from jobs.performance.pipeline import pipeline
from jobs.performance.timing import Series, in_turn, seconds
from jobs.performance.workloads import workload
from jobs.tables import Table

PARTS = (1, 2)  # search.parts; chunks are as many times larger, so that as many states are evaluated at once


@dataclass(frozen=True)
class RewardTimes:
    """Series: seconds per accepted sample; `network`: of the search in process, whose own reward costs next to
    nothing; parts: search.parts -> through the pipeline with the slow reward."""

    workload: str
    reward_s: float  # that the reward sleeps per accepted sample
    network: dict[int, Series]
    parts: dict[int, Series]

    def rows(self) -> list[tuple[str, ...]]:
        slower = {n: Series(tuple(max(self.reward_s, v) for v in s.values)) for n, s in self.network.items()}
        return [
            (
                self.workload,
                str(number),
                self.network[number].show(),
                f"{self.reward_s:.3g}",
                through.show(),
                slower[number].over(through).show(),
            )
            for number, through in self.parts.items()
        ]


def run(options: Options) -> Found:
    measured = measure_each(measure, options)
    header = ("workload", "search.parts", "network, s per sample", "reward", "both", "slower / both")
    rows = tuple(row for each in measured for row in each.rows())
    return Found([Table("A remote reward as slow as the network", header, rows)], measured)


def measure(name: str, options: Options) -> RewardTimes:
    work = workload(name, options.out, options.device)
    with torch.no_grad():
        found = search(work)
        alone = min(seconds(lambda: search(work), work.device) for _ in range(2))
    each = alone / found.cost.reward  # what the network costs per call of the reward
    network, parts = {}, {}
    for number in PARTS:
        size = number * work.batch
        words = [f"search.parts={number}", f"search.chunk={size}", f"search.trajectories={size}"]
        words += [f"reward={{kind: jobs.performance.slow_reward:SlowReward, args: {{seconds: {each}}}}}"]
        slow = workload(name, options.out, options.device, [*words, "roles.reward.merge=false"])
        chunks = math.ceil(pipeline_chunks(work) / number)
        with torch.no_grad(), pipeline(slow.config, slow.name, options.out) as through:
            contenders = {
                "network": lambda: seconds(lambda: search(work), work.device) / work.batch,
                "both": lambda: through.seconds(slow.chunk, chunks) / chunks / slow.batch,  # noqa: B023
            }
            times = in_turn(contenders, options.turns)
        network[number], parts[number] = times["network"], times["both"]
    return RewardTimes(name, each * found.cost.reward / work.batch, network, parts)
