"""The M-step as a Ray Train job: every rank polls the mailbox for rounds until it says stop.

One job for the whole run, or with `roles.train.lifetime: round` one per round.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray import exceptions

from dav_ray.config.schema import Config
from dav_ray.errors import DavRayError, RunError
from dav_ray.mstep.options import batch_of_rank
from dav_ray.run_dir.storage.interface import Storage
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.runtime.train.mailbox import Job, Place, Share, ask
from dav_ray.runtime.train.troubles import trouble_of

if TYPE_CHECKING:
    import pyarrow as pa

POLL_S = 0.1
FETCH_S = 300.0  # longest wait for rows from the object store; then they are read from their shards


@dataclass(frozen=True)
class TrainSpec:
    """What a rank is built from: light and picklable."""

    config: Config
    run_dir: str
    namespace: str
    mailbox: str
    job: str = "train"  # Ray Train's name of the job; it would go on from the checkpoints of one with the same name


def train_loop(loop_config: dict[str, Any]) -> None:
    """What every rank runs. What it raises goes to the driver, which bounds how often Ray Train starts it again."""
    import ray.train

    spec: TrainSpec = loop_config["spec"]
    mailbox, rank = ray.get_actor(spec.mailbox, namespace=spec.namespace), ray.train.get_context().get_world_rank()
    try:
        serve(spec, mailbox, rank)
    except Stopped:
        return
    except DavRayError as error:
        ask("train", "a failure", mailbox.fail.remote(error, trouble_of(rank, error, final=True)))
        raise
    except Halved:
        raise
    except Exception as error:
        ask("train", "a trouble", mailbox.trouble.remote(trouble_of(rank, error, final=False)))
        raise


@contextlib.contextmanager
def within_memory(mailbox: Any, rank: int, micro_batch: int, *, halve: bool = True) -> Iterator[None]:
    """Halved where memory runs out, once the mailbox knows. RunError where starting again would not mend it: with one
    transition at a time, or (halve = False) where it does not depend on their number."""
    from dav_ray.diffusion.device import in_a_line, memory_in_words, out_of_memory

    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        took, cause = memory_in_words(), in_a_line(error)
        if not halve or micro_batch == 1:
            words = f"out of memory, {took} taken, with mstep.micro_batch = {micro_batch}"
            raise RunError("train", f"{words}: {cause}") from error
        ask("train", "half the micro-batch", mailbox.halve.remote(rank, micro_batch, took, cause))
        raise Halved(cause) from error


def serve(spec: TrainSpec, mailbox: Any, rank: int) -> None:
    """Rounds from the mailbox, until it says stop."""
    most = min(spec.config.mstep.micro_batch, batch_of_rank(spec.config.mstep, spec.config.roles.train.replicas))
    micro_batch = ask("train", "the micro-batch", mailbox.micro_batch.remote(most))
    with within_memory(mailbox, rank, micro_batch, halve=False):
        learner = Learner(spec, micro_batch)
    storage = open_storage(spec.run_dir)
    place = Place(ray.get_runtime_context().get_node_id(), uuid.uuid4().hex, os.getpid())
    while True:
        job = ask("train", "the next round", mailbox.job.remote(rank, place))
        if job == "stop":
            return
        if job is None or learner.version > job.base:
            time.sleep(POLL_S)
            continue
        with within_memory(mailbox, rank, micro_batch):
            learner.train(job, _groups(mailbox, storage, job, rank), mailbox, rank)


class Stopped(Exception):
    """The trainer was ended while this rank waited for rows."""


class Halved(Exception):
    """Memory ran out on this rank: Ray Train starts the ranks again, which take half as much at once."""


class Learner:
    """The model, its optimizer and the policy version they stand at. micro_batch: transitions at once."""

    def __init__(self, spec: TrainSpec, micro_batch: int) -> None:
        import torch
        from ray.train.torch import get_device, prepare_model

        from dav_ray.config.build import for_training
        from dav_ray.diffusion.device import keep_freed_memory
        from dav_ray.mstep.fit import Fitter
        from dav_ray.registry import on_path
        from dav_ray.run_dir import policy
        from dav_ray.run_dir.marker import check_marker

        keep_freed_memory()
        config = spec.config
        on_path(config.modules)
        torch.set_num_threads(config.roles.train.threads)
        device = str(get_device())
        self._diffusion = for_training(config, device=device, micro_batch=micro_batch)
        wrapped = self._diffusion.parallelise(lambda module: prepare_model(module, move_to_device=False))
        defer = getattr(wrapped, "no_sync", None)  # only the DDP wrapper has it
        device_type = device.split(":")[0]
        self._fitter = Fitter(
            self._diffusion,
            config.mstep.model_copy(update={"micro_batch": micro_batch}),
            config.seed,
            device=device_type,
            **({"defer": defer} if defer else {}),
        )
        self._config, self._storage = config, open_storage(spec.run_dir)
        check_marker(self._storage, ray.get_runtime_context().get_node_id())
        if config.init.run is not None:
            policy.start(self._storage, self._diffusion)
        self.version = 0

    def train(self, job: Job, groups: Iterator[Any], mailbox: Any, rank: int) -> None:
        """Fit a round and, on rank 0, save and hand in the new policy."""
        from dav_ray.run_dir import policy

        if self.version != job.base:
            self._restore(job.base)
        metrics = self._fitter.fit(job.round, groups)
        if int(metrics["mstep/rows"]) != job.rows:
            raise RunError(
                "train", f"round {job.round}: trained on {metrics['mstep/rows']:.0f} rows of {job.rows} committed"
            )
        self.version = job.base + 1
        if rank == 0:
            policy.save(self._storage, self.version, self._diffusion, self._fitter.optimizer, self._fitter.scaler)
            # the reference alone, in a list: what is passed as an argument itself would go through the mailbox's node
            held = [ray.put(policy.get_weights(self._diffusion))]
            ask("train", "a new policy", mailbox.hand_in.remote(job.round, metrics, self.version, held))

    def _restore(self, version: int) -> None:
        """Go on from a stored policy, after a restart."""
        from dav_ray.run_dir import policy

        policy.set_weights(self._diffusion, policy.read_weights(self._storage, version, self._diffusion))
        policy.read_optimizer(self._storage, version, self._fitter.optimizer, self._fitter.scaler)
        self.version = version


def _groups(mailbox: Any, storage: Storage, job: Job, rank: int) -> Iterator[Any]:
    """This rank's rows of each group, in order, as the driver posts them."""
    from dav_ray.run_dir import shards
    from dav_ray.runtime.train import datasets

    datasets.prepare()
    for number in range(job.groups):
        while (share := ask("train", "a group", mailbox.group.remote(job.round, number, rank))) is None:
            time.sleep(POLL_S)
        if share == "stop":
            raise Stopped
        try:
            table = shards.concat(datasets.read(share.dataset, FETCH_S))
        except exceptions.RayError as error:  # the node that held it is gone: the shards are the record
            answer = mailbox.lose.remote(rank, job.round, number, type(error).__name__)
            ask("train", "a dataset was lost", answer)
            table = stored_rows(storage, share)
        yield shards.to_rows(table, share.weights)


def stored_rows(storage: Storage, share: Share) -> pa.Table:
    """The rows of a share from its shards, checksums verified: the same in the same order as in its dataset."""
    from dav_ray.run_dir import shards
    from dav_ray.run_dir.manifest import ManifestStore

    store = ManifestStore(storage)
    whole = shards.concat([shards.decode(store.verify(shard)) for shard in share.shards])
    return whole.slice(share.first, share.end - share.first)
