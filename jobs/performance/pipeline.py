"""The E-step as a run does it: a search worker and the rewards' fleet are actors on a Ray of this machine, chunks come
from the dispatcher, shards are written and committed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dav_ray.config.schema import Config
from dav_ray.run_dir.manifest import ManifestStore
from dav_ray.run_dir.marker import write_marker
from dav_ray.run_dir.records import RunLog
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.runtime.cluster.connect import connected
from dav_ray.runtime.search.dispatch import Dispatcher, Done
from dav_ray.runtime.session import session
from dav_ray.runtime.spent import Ledger
from dav_ray.types import Chunk


@dataclass
class Pipeline:
    """One search worker with its dispatcher. ledger: of the last call of `seconds`."""

    dispatcher: Dispatcher
    store: ManifestStore
    committed: int = 0
    ledger: Ledger = field(default_factory=Ledger)

    def seconds(self, chunk: Chunk, times: int) -> float:
        """To search, write and commit the chunk `times` times, each under another number."""
        numbers = range(self.committed, self.committed + times)
        chunks = [replace(chunk, index=number) for number in numbers]
        self.committed, self.ledger = self.committed + times, Ledger()

        def commit(done: Sequence[Done]) -> None:
            self.store.commit([found.shard for _, _, found in done])
            for _, _, found in done:
                self.ledger.add(found.spent, found.cost)

        start = time.perf_counter()
        self.dispatcher.run("search", chunks, commit)
        return time.perf_counter() - start


@contextlib.contextmanager
def pipeline(config: Config, name: str, folder: Path) -> Iterator[Pipeline]:
    """Started with this configuration on a Ray of its own; its search worker loads the model. name: of the run's
    folder."""
    with connected("local", config), beside_others(config, name, folder) as started:
        yield started


@contextlib.contextmanager
def beside_others(config: Config, name: str, folder: Path) -> Iterator[Pipeline]:
    """The same on the Ray that is connected, where others may be."""
    place = str((folder / f"run-{name}-{time.time_ns()}").resolve())
    storage = open_storage(place)
    write_marker(storage)
    store = ManifestStore(storage)
    log = RunLog(storage, store.open(config.identity(), {}).epoch, None)
    with session(config, place, f"benchmark-{time.time_ns()}", log, train=False) as actors:
        yield Pipeline(Dispatcher(actors.team, log), store)
