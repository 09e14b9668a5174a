"""The M-step of one rank against its limit: forward and backward of every transition, and the reference's forward where
lambda > 0, at the best batch size, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from dav_ray.mstep.fit import Fitter
from dav_ray.run_dir import shards
from jobs.performance.limit import BATCHES
from jobs.performance.network import training_step
from jobs.performance.options import Found, Options, measure_each
from jobs.performance.parts.search import search
from jobs.performance.timing import Series, best_batch, in_turn, seconds
from jobs.performance.workloads import workload
from jobs.tables import Table


@dataclass(frozen=True)
class FitTimes:
    """Series: seconds per transition."""

    workload: str
    batch: int
    times: dict[str, Series]  # ours, limit

    def row(self) -> tuple[str, ...]:
        ours, limit = self.times["ours"], self.times["limit"]
        return self.workload, str(self.batch), limit.show(1000), ours.show(1000), limit.over(ours).show()


def run(options: Options) -> Found:
    measured = measure_each(measure, options)
    header = ("workload", "best batch", "limit, ms per transition", "one rank", "limit / one rank")
    return Found([Table("M-step", header, tuple(each.row() for each in measured))], measured)


def measure(name: str, options: Options) -> FitTimes:
    work = workload(name, options.out, options.device)
    config = work.config
    rows = shards.to_rows(shards.to_table(work.chunk, search(work)), dict.fromkeys(work.chunk.trajectories, 1.0))
    transitions = work.batch * config.search.steps * config.mstep.epochs
    fitter = Fitter(work.diffusion, config.mstep, config.seed, device=work.device)
    batch = best_batch(lambda size: training_step(work, size), BATCHES, work.device)
    bare, calls = training_step(work, batch), math.ceil(transitions / batch)
    contenders: dict[str, Callable[[], float]] = {
        "limit": lambda: seconds(lambda: [bare() for _ in range(calls)], work.device) / calls / batch,
        "ours": lambda: seconds(lambda: fitter.fit(1, [rows]), work.device) / transitions,
    }
    return FitTimes(work.name, batch, in_turn(contenders, options.turns))
