"""Fresh samples of a run's last policy, drawn without search on search actors: what `evaluate` and `sample` share."""

from __future__ import annotations

import os

import pyarrow as pa

from dav_ray.driver import absolute
from dav_ray.evaluate import evaluation_chunks
from dav_ray.run_files import RunLog, StoredRun, read_run, write_marker


def stored_run(run_dir: str) -> StoredRun:
    """UserError if there is no run at `run_dir`, relative to this process or not."""
    return read_run(absolute(run_dir))


def fresh_samples(stored: StoredRun, num: int | None, seed: int | None, address: str) -> tuple[int, pa.Table]:
    """The last closed round, and `num` samples of seeds `seed`, `seed` + 1, ... (columns as in `evaluate.measure`).

    Defaults: evaluate.samples and evaluate.seed.
    """
    import ray

    from dav_ray.dispatch import Dispatcher
    from dav_ray.session import connected, session

    storage, manifest, config = stored.storage, stored.manifest, stored.config
    place = storage.uri
    chunks = evaluation_chunks(config, manifest.closed, manifest.policy_version, config.prompts, num, seed)
    tables: dict[int, pa.Table] = {}
    with connected(address, config):
        write_marker(storage)
        name = f"dav_ray-{config.identity()[:8]}-{os.getpid()}"
        log = RunLog(storage, manifest.epoch)
        with session(config, place, name, log, train=False) as actors:
            role = config.roles.search
            dispatcher = Dispatcher(actors.workers, place, log, role.call_timeout_s, role.start_timeout_s)
            dispatcher.expect(actors.away)
            dispatcher.run("evaluate", chunks, lambda chunk, table, _: tables.__setitem__(chunk.index, ray.get(table)))
    return manifest.closed, pa.concat_tables([tables[index] for index in sorted(tables)])
