"""Fresh samples of a run's last policy, drawn without search on search actors: what `evaluate` and `sample` share."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import pyarrow as pa

from dav_ray.driver import absolute
from dav_ray.errors import RunError
from dav_ray.evaluate import evaluation_chunks
from dav_ray.run_files import RunLog, StoredRun, read_run, write_marker
from dav_ray.types import EvaluationChunk

ATTEMPTS = 5  # at tables that are lost with their nodes
FETCH_S = 300.0  # longest wait for a table that is there


def stored_run(run_dir: str) -> StoredRun:
    """UserError if there is no run at `run_dir`, relative to this process or not."""
    return read_run(absolute(run_dir))


def fresh_samples(stored: StoredRun, num: int | None, seed: int | None, address: str) -> tuple[int, pa.Table]:
    """The last closed round, and `num` samples of seeds `seed`, `seed` + 1, ... (columns as in `evaluate.measure`).

    Defaults: evaluate.samples and evaluate.seed.
    """
    import ray
    from ray import exceptions

    from dav_ray.dispatch import Dispatcher
    from dav_ray.session import connected, session

    storage, manifest, config = stored.storage, stored.manifest, stored.config
    place = storage.uri
    chunks = evaluation_chunks(config, manifest.closed, manifest.policy_version, config.prompts, num, seed)
    tables: dict[int, pa.Table] = {}

    def keep(chunk: EvaluationChunk, table: Any, _: Any) -> None:
        with contextlib.suppress(exceptions.ObjectLostError, exceptions.GetTimeoutError):  # it is drawn again
            tables[chunk.index] = ray.get(table, timeout=FETCH_S)

    with connected(address, config):
        write_marker(storage)
        name = f"dav_ray-{config.identity()[:8]}-{os.getpid()}"
        log = RunLog(storage, manifest.epoch)
        with session(config, place, name, log, train=False) as actors:
            role = config.roles.search
            limits = role.call_timeout_s, role.start_timeout_s
            dispatcher = Dispatcher(actors.workers, place, log, *limits, actors.renew_search)
            dispatcher.expect(actors.away, actors.lives)
            for _ in range(ATTEMPTS):
                missing = [chunk for chunk in chunks if chunk.index not in tables]
                dispatcher.run("evaluate", missing, keep)
            if len(tables) < len(chunks):
                raise RunError("search", f"tables of fresh samples were lost {ATTEMPTS} times with their nodes")
    return manifest.closed, pa.concat_tables([tables[index] for index in sorted(tables)])
