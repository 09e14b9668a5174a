"""What a run costs beside its work: its start, a round with next to nothing to do, the way of a policy to the search
workers, shards."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from dav_ray.run_dir import shards
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.runtime.train.mailbox import Job, Mailbox
from jobs.performance.empty_run import empty_run
from jobs.performance.options import Found, Options
from jobs.performance.timing import Series, in_turn, seconds
from jobs.tables import Table

ROUNDS, WORKERS = 8, 8
SIZES_MB = (10, 500)


@dataclass(frozen=True)
class Overhead:
    what: str
    unit: str
    times: Series

    def row(self) -> tuple[str, ...]:
        return self.what, self.times.show(), self.unit


def run(options: Options) -> Found:
    measured = [*_run(options.out), *_broadcast(options.turns), *_shards(options.out, options.turns)]
    rows = tuple(each.row() for each in measured)
    return Found([Table("Overheads", ("what", "measured", "unit"), rows)], measured)


def _run(out: Path) -> list[Overhead]:
    run = empty_run(out, ROUNDS)
    words = f"an empty round (search, commit, fit, publish, evaluate), 2 to {ROUNDS}"
    return [
        Overhead("command to first accepted sample, nothing cached by Ray", "s", Series((run.first_s,))),
        Overhead(words, "s", Series(run.rounds_s[1:])),
        Overhead(f"the whole run of {ROUNDS} empty rounds", "s", Series((run.took_s,))),
    ]


class Receiver:
    """Fetches a policy as a search worker does."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def fetch(self, version: int) -> int:
        (ref,) = ray.get(self._mailbox.weights.remote(version))
        return sum(array.nbytes for array in ray.get(ref).values())


def _broadcast(turns: int) -> list[Overhead]:
    found = []
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        mailbox = ray.remote(Mailbox).options(num_cpus=0, max_concurrency=100).remote()
        receivers = [ray.remote(Receiver).options(num_cpus=0).remote(mailbox) for _ in range(WORKERS)]
        for size in SIZES_MB:
            weights = {f"w{i}": np.ones(size * 62_500 // 4, np.float32) for i in range(16)}
            values = []
            for version in range(size, size + turns + 1):  # a mailbox holds the newest
                ray.get(mailbox.post_job.remote(Job(version, version - 1, 0, 0)))
                start = time.perf_counter()
                ray.get(mailbox.hand_in.remote(version, {}, version, weights))
                assert set(ray.get([r.fetch.remote(version) for r in receivers])) == {size * 1_000_000}
                values.append(time.perf_counter() - start)
            found.append(Overhead(f"a policy of {size} MB to {WORKERS} search workers", "s", Series(tuple(values[1:]))))
    finally:
        ray.shutdown()
    return found


def _shards(out: Path, turns: int) -> list[Overhead]:
    """64 trajectories of 50 steps of latents 4 x 32 x 32, against pyarrow alone with the same compression."""
    states = np.random.default_rng(0).standard_normal((64, 51, 4, 32, 32)).astype(np.float32)
    schema = pa.schema([shards.tensor_field("states", states)])
    table = pa.Table.from_arrays([shards.tensor_column(states)], schema=schema)
    storage, megabytes = open_storage(str(out.resolve() / "shards")), table.nbytes / 1e6
    ours, plain = "buffer/shard.parquet", str(out / "plain.parquet")
    contenders = {
        "a shard encoded, hashed, written": lambda: storage.write(ours, shards.encode(table)[0]),
        "pyarrow alone, written": lambda: pq.write_table(table, plain, compression="zstd"),
        "a shard read": lambda: shards.decode(storage.read(ours)),
        "pyarrow alone, read": lambda: pq.read_table(plain),
    }
    times = in_turn({name: lambda work=work: megabytes / seconds(work) for name, work in contenders.items()}, turns)
    return [Overhead(name, "MB/s", series) for name, series in times.items()]
