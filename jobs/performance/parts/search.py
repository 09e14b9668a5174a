"""The E-step on the same weights and settings, in turn: in process, through the pipeline, as a plain loop; and its
limit, which is the evaluations that it needs at the best batch size and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from dav_ray.config.build import strategy
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.types import Chunk, Trajectories
from jobs.performance.network import forward
from jobs.performance.options import Found, Options, measure_each
from jobs.performance.pipeline import pipeline
from jobs.performance.plain import plain_search
from jobs.performance.timing import Series, best_batch, in_turn, seconds
from jobs.performance.workloads import Workload, workload
from jobs.tables import Table

BATCHES = (1, 2, 4, 8, 16, 32, 64)
PIPELINE_S = 10.0  # that the pipeline is measured per turn, at least
PLAIN = 1  # trajectories per turn of the plain loop, which is slow


@dataclass(frozen=True)
class SearchTimes:
    """Series: seconds per accepted sample."""

    workload: str
    evaluations: float  # per accepted sample
    batch: int  # at which the bare network is fastest
    times: dict[str, Series]  # limit, ours, pipeline, plain

    def row(self) -> tuple[str, ...]:
        limit, ours, through, plain = (self.times[name] for name in ("limit", "ours", "pipeline", "plain"))
        times = (limit, ours, through, plain, limit.over(ours), ours.over(through), plain.over(ours))
        return self.workload, f"{self.evaluations:.0f}", str(self.batch), *(each.show() for each in times)


HEADER = (
    *(
        "workload",
        "network evaluations per sample",
        "best batch",
        "limit, s per sample",
        "in process",
        "pipeline",
        "plain loop",
    ),
    *("limit / in process", "in process / pipeline", "plain / in process"),
)


def run(options: Options) -> Found:
    measured = measure_each(measure, options)
    return Found([Table("E-step", HEADER, tuple(each.row() for each in measured))], measured)


def measure(name: str, options: Options) -> SearchTimes:
    work = workload(name, options.out, options.device)
    found = search(work)
    part = replace(work.chunk, trajectories=work.chunk.trajectories[:PLAIN], conditions=work.chunk.conditions[:PLAIN])
    evaluations, chunks = found.cost.network / work.batch, pipeline_chunks(work)
    with torch.no_grad(), pipeline(work, options.out) as through:
        batch = best_batch(lambda size: forward(work, size), BATCHES, work.device)
        bare, calls = forward(work, batch), math.ceil(found.cost.network / batch)
        contenders: dict[str, Callable[[], float]] = {
            "limit": lambda: seconds(lambda: [bare() for _ in range(calls)], work.device) / calls / batch * evaluations,
            "ours": lambda: seconds(lambda: search(work), work.device) / work.batch,
            "pipeline": lambda: through.seconds(work.chunk, chunks) / chunks / work.batch,
            "plain": lambda: seconds(lambda: plain(work, part), work.device) / PLAIN,
        }
        times = in_turn(contenders, options.turns)
    return SearchTimes(work.name, evaluations, batch, times)


def search(work: Workload) -> Trajectories:
    """The configured search of the workload's chunk, in this process."""
    noise = KeyedNoise(work.chunk.seed, work.chunk.round, work.chunk.trajectories)
    return strategy(work.config.search)(work.diffusion, work.scorer, work.chunk.conditions, noise)


def pipeline_chunks(work: Workload) -> int:
    """How many chunks of this size the pipeline is to search per turn."""
    return math.ceil(PIPELINE_S / seconds(lambda: search(work), work.device))


def plain(work: Workload, chunk: Chunk) -> torch.Tensor:
    return plain_search(work.diffusion, work.scorer, chunk, work.config.search)
