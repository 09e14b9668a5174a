"""How many chunks a second the driver hands out and commits: the run's own dispatcher, manifest and events, and workers
that sleep in place of searching. Hundreds of them live in a few processes."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import ray

from dav_ray.config.sections.roles import PoolRole
from dav_ray.run_dir.manifest import ManifestStore
from dav_ray.run_dir.manifest_record import Shard, buffer_folder
from dav_ray.run_dir.records import RunLog
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.runtime.search.calls import AT_ONCE
from dav_ray.runtime.search.dispatch import Dispatcher, Done
from dav_ray.runtime.search.process import Process, Reply
from dav_ray.runtime.search.workers import SearchTeam
from jobs.performance.options import Found, Options
from jobs.tables import Table

WORKERS, CHUNKS, PROCESSES = 512, 2048, 2
OFFERED = (20.0, 80.0)  # chunks a second that the workers would do if they never waited


@dataclass(frozen=True)
class Chunks:
    """Per second."""

    workers: int
    chunks: int
    offered: float
    reached: float

    def row(self) -> tuple[str, ...]:
        share = f"{100 * self.reached / self.offered:.0f} %"
        return str(self.workers), str(self.chunks), f"{self.offered:.0f}", f"{self.reached:.1f}", share


@dataclass(frozen=True)
class Item:
    index: int

    @property
    def name(self) -> str:
        return str(self.index)


class Sleepers:
    """So many workers that sleep, for half to one and a half of `pace` seconds, each for one item at a time."""

    def __init__(self, pace: float, workers: int) -> None:
        self._pace, self._awake = pace, asyncio.Semaphore(workers)
        here = ray.get_runtime_context()
        self._process = Process.begin(here.get_node_id(), here.get_worker_id())

    async def ready(self, run_dir: str) -> Process:
        return self._process

    @ray.method(num_returns=2)
    async def search(self, item: Item, halvings: int) -> tuple[None, Reply]:
        async with self._awake:
            await asyncio.sleep(self._pace * (0.5 + random.random()))
        sha256 = hashlib.sha256(item.name.encode()).hexdigest()
        path = f"{buffer_folder(1)}/chunk-{item.index:05d}-{sha256}.parquet"
        return None, Reply(Shard(path, sha256, item.index, 1, 0), self._process)


def run(options: Options) -> Found:
    measured = [measure(options, offered) for offered in OFFERED]
    header = ("workers", "chunks", "offered per s", "committed per s", "share")
    return Found([Table("The driver with workers that sleep", header, tuple(one.row() for one in measured))], measured)


def measure(options: Options, offered: float, workers: int = WORKERS, chunks: int = CHUNKS) -> Chunks:
    place = str((options.out / f"driver-{time.time_ns()}").resolve())
    storage = open_storage(place)
    store = ManifestStore(storage)
    log = RunLog(storage, store.open("sleeping", {}).epoch, None)
    with ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False):
        sleepers = ray.remote(Sleepers).options(num_cpus=0, max_concurrency=AT_ONCE * workers)
        held = [sleepers.remote(workers / offered, workers // PROCESSES) for _ in range(PROCESSES)]
        names = [f"search-{number}" for number in range(workers)]
        role = PoolRole(replicas=workers)
        team = SearchTeam(names, lambda name: held[int(name[7:]) % PROCESSES], role, place, log)
        team.ensure()

        times: list[float] = []

        def commit(done: Sequence[Done]) -> None:
            store.commit([shard for _, _, shard in done])
            for item, _, _ in done:
                log.event("chunk_committed", round=1, chunk=item.index, seconds=0.0)
            times.extend([time.perf_counter()] * len(done))

        Dispatcher(team, log).run("search", [Item(index) for index in range(chunks)], commit, in_order=True)
    assert len(store.current.shards) == chunks
    # the middle half: all workers begin at once, and at the end fewer and fewer have a chunk
    first, last = chunks // 4, 3 * chunks // 4
    return Chunks(workers, chunks, offered, (last - first) / (times[last] - times[first]))
