"""How cost grows: the search by M, T and batch, the fit by size of adapters and buffer, the scheduler by workers."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

import torch

from dav_ray.mstep.fit import Fitter
from dav_ray.run_dir import shards
from dav_ray.runtime.search.schedule import Schedule
from jobs.performance.empty_run import empty_run
from jobs.performance.memory import peak_mb
from jobs.performance.options import Found, Options
from jobs.performance.parts.search import search
from jobs.performance.pipeline import pipeline
from jobs.performance.timing import Series, in_turn, seconds
from jobs.performance.workloads import Workload, workload
from jobs.tables import Table

SEARCH = {"candidates": (2, 4, 8, 16), "steps": (5, 10, 20, 40), "chunk": (1, 4, 16, 64)}
RANKS, ROWS, MICRO = (
    (4, 16, 64),
    (8, 32, 128),
    (16, 64, 256),
)  # of the adapters; in the buffer; at once
POOLS, CHUNKS_EACH = (1, 8, 64, 512), 20
WORKERS, CHUNKS = (1, 2), 4  # real ones; chunks per worker and turn
ROUNDS, TENTH = 50, 10


@dataclass(frozen=True)
class Point:
    """Series: seconds per accepted sample (search), per transition (fit), per chunk (scheduler)."""

    of: str
    by: str
    value: int
    evaluations: float
    times: Series
    memory_mb: float

    def row(self) -> tuple[str, ...]:
        each = Series(tuple(v / max(1.0, self.evaluations) for v in self.times.values))
        count = f"{self.evaluations:.0f}" if self.evaluations else ""
        return self.of, self.by, str(self.value), count, self.times.show(1000), each.show(1000), f"{self.memory_mb:.0f}"


def run(options: Options) -> Found:
    name = options.workloads[0]
    points = [_search(name, options, key, value) for key, values in SEARCH.items() for value in values]
    points += [_fit(name, options, "rank of the adapters", f"mstep.lora.rank={rank}", rank) for rank in RANKS]
    points += [_fit(name, options, "trajectories", f"search.chunk={rows}", rows) for rows in ROWS]
    points += [_fit(name, options, "micro-batch", f"mstep.micro_batch={size}", size) for size in MICRO]
    pools = [_schedule(workers, options.turns) for workers in POOLS]
    header = (
        "what",
        "by",
        "value",
        "network evaluations",
        "ms per sample or transition",
        "ms per network evaluation",
        "more memory, MB",
    )
    rows = tuple((str(p.value), str(p.value * CHUNKS_EACH), p.times.show(1e6)) for p in pools)
    simulated = Table("Scheduler, simulated", ("workers", "chunks", "us per chunk"), rows)
    real, rounds = [_workers(name, options, number) for number in WORKERS], _rounds(options)
    rows = tuple((str(p.value), p.times.show(1000), real[0].times.over(p.times).show()) for p in real)
    workers = Table(f"Search workers, {name}", ("workers", "ms per sample", "times one worker's speed"), rows)
    rows = tuple((f"{p.value} to {p.value + TENTH - 1}", p.times.show()) for p in rounds)
    empty = Table("Empty rounds", ("rounds", "s per round"), rows)
    tables = [Table(f"Growth, {name}", header, tuple(p.row() for p in points)), workers, simulated, empty]
    return Found(tables, [*points, *real, *pools, *rounds])


def _search(name: str, options: Options, key: str, value: int) -> Point:
    words = [f"search.{key}={value}", *([f"search.trajectories={value}"] if key == "chunk" else [])]
    work = workload(name, options.out, options.device, words)
    times = in_turn({"": lambda: seconds(lambda: search(work), work.device) / work.batch}, min(3, options.turns))
    memory, found = peak_mb(lambda: search(work), work.device)
    return Point("search", key, value, found.cost.network / work.batch, times[""], memory)


def _fit(name: str, options: Options, by: str, word: str, value: int) -> Point:
    words = ["search.candidates=2", "mstep.epochs=1", "mstep.batch_size=256", word]
    work = workload(name, options.out, options.device, words)
    rows = _rows(work)
    fitter = Fitter(work.diffusion, work.config.mstep, work.config.seed, device=work.device)
    transitions = work.batch * work.config.search.steps
    times = in_turn({"": lambda: seconds(lambda: fitter.fit(1, [rows]), work.device) / transitions}, 2)
    memory, _ = peak_mb(lambda: fitter.fit(1, [rows]), work.device)
    return Point("fit", by, value, 0.0, times[""], memory)


def _rows(work: Workload) -> shards.Rows:
    table = shards.to_table(work.chunk, search(work))
    return shards.to_rows(table, dict.fromkeys(work.chunk.trajectories, 1.0))


def _workers(name: str, options: Options, number: int) -> Point:
    """Through the pipeline, with so many search workers on this machine."""
    work = workload(name, options.out, options.device, [f"roles.search.replicas={number}"])
    samples = CHUNKS * number * work.batch
    with torch.no_grad(), pipeline(work, options.out) as through:
        each = {"": lambda: through.seconds(work.chunk, CHUNKS * number) / samples}
        times = in_turn(each, min(3, options.turns))
    return Point("search", "workers", number, 0.0, times[""], 0.0)


def _rounds(options: Options) -> list[Point]:
    """Rounds with next to nothing to do, ten by ten, the first left out."""
    seconds_each = empty_run(options.out, ROUNDS + 1).rounds_s[1:]
    parts = [seconds_each[first : first + TENTH] for first in range(0, ROUNDS, TENTH)]
    return [Point("run", "rounds", 2 + i * TENTH, 0.0, Series(part), 0.0) for i, part in enumerate(parts)]


def _schedule(workers: int, turns: int) -> Point:
    times = Series(tuple(_scheduling_s(workers, seed) for seed in range(turns)))
    return Point("scheduler", "workers", workers, 0.0, times, 0.0)


def _scheduling_s(workers: int, seed: int) -> float:
    """Per chunk, of a pool whose workers differ up to fourfold in speed; the clock is simulated."""
    rng = random.Random(seed)
    paces = [rng.uniform(1.0, 4.0) for _ in range(workers)]
    schedule, busy, now, spent = Schedule(range(workers * CHUNKS_EACH), 10), dict[int, float](), 0.0, 0.0
    while not schedule.finished:
        start = time.perf_counter()
        for worker in range(workers):
            if worker not in busy and schedule.next(worker, now) is not None:
                busy[worker] = now + paces[worker]
        first = min(busy, key=lambda worker: busy[worker])
        now = busy.pop(first)
        schedule.complete(first, now)
        spent += time.perf_counter() - start
    return spent / (workers * CHUNKS_EACH)
