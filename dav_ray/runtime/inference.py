"""Fresh samples of a run's policies, drawn without search on search actors."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from dav_ray.config.schema import Config
from dav_ray.config.stored import StoredRun, read_run
from dav_ray.run_dir.marker import write_marker
from dav_ray.run_dir.records import RunLog
from dav_ray.run_dir.storage.uri import absolute
from dav_ray.types import EvaluationChunk

Measure = Callable[[Sequence[EvaluationChunk]], pa.Table]


def stored_run(run_dir: str) -> StoredRun:
    """UserError if there is no run at `run_dir`, relative to this process or not."""
    return read_run(absolute(run_dir))


@contextlib.contextmanager
def measuring(stored: StoredRun, address: str, config: Config | None = None) -> Iterator[Measure]:
    """What measures chunks on the cluster at `address`, as long as the context lasts. config: in place of the run's."""
    from dav_ray.runtime.cluster.connect import connected
    from dav_ray.runtime.search.dispatch import Dispatcher
    from dav_ray.runtime.session import session

    storage, manifest, config = stored.storage, stored.manifest, config or stored.config
    place = storage.uri
    with connected(address, config):
        write_marker(storage)
        name = f"dav_ray-{config.identity()[:8]}-{os.getpid()}"
        log = RunLog(storage, manifest.epoch)
        with session(config, place, name, log, train=False) as actors:
            yield Dispatcher(actors.team, log).gather
