"""A search worker: a thin actor that builds the model on its own node and serves chunks with the policy they name."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import ray
from ray import exceptions

from dav_ray.config import Config
from dav_ray.types import Chunk, Cost, EvaluationChunk, Trajectories


@dataclass(frozen=True)
class WorkerSpec:
    """What an actor is built from: light and picklable."""

    config: Config
    run_dir: str
    namespace: str
    fleet: str  # the actor that serves the rewards
    fleet_timeout_s: float
    mailbox: str  # the actor that hands out policies within the run


@dataclass(frozen=True)
class ChunkMeta:
    """What the driver learns of a chunk; the table itself stays in the object store."""

    index: int
    path: str  # of the shard, already written
    sha256: str
    rows: int
    policy_version: int
    trajectories: tuple[int, ...]
    conditions: tuple[str, ...]
    rewards: tuple[float, ...]
    log_weights: tuple[float, ...] | None
    ess: tuple[float, ...]
    cost: Cost
    seconds: float
    memory_gb: float  # most GPU memory of the worker so far; 0 without a GPU


class SearchActor:
    def __init__(self, spec: WorkerSpec) -> None:
        import torch

        from dav_ray.device import quiet
        from dav_ray.diffusion.families import build
        from dav_ray.rewards.actor import FleetClient
        from dav_ray.rewards.base import Scorer
        from dav_ray.search.base import strategy
        from dav_ray.search.last_round import LastRound
        from dav_ray.sequences import Alphabet
        from dav_ray.storage import open_storage

        quiet()
        torch.set_num_threads(spec.config.roles.search.threads)
        config = spec.config
        device = "cuda" if ray.get_gpu_ids() else "cpu"  # what Ray gave, not what the environment shows
        self._spec, self._version, self._device = spec, 0, device
        self._storage = open_storage(spec.run_dir)
        self._diffusion = build(config, device=device)
        fleet = FleetClient(spec.fleet, spec.namespace, spec.fleet_timeout_s)
        self._scorer = Scorer([r.label for r in config.reward], [r.weight for r in config.reward], fleet)
        fitted = config.mstep
        self._search = strategy(config.search, blend=fitted.candidates == "all", complete=fitted.target == "completed")
        self._last_round = LastRound(config, self._storage)
        self._alphabet = Alphabet.of(config.model.alphabet) if config.model.kind == "masked" else None
        self._judges: Any = None
        self._initial = _copy_weights(self._diffusion)

    def ready(self, run_dir: str) -> str:
        """The node's id, once the model stands and the run directory is reachable."""
        from dav_ray.run_files import check_marker
        from dav_ray.storage import open_storage

        node = ray.get_runtime_context().get_node_id()
        check_marker(open_storage(run_dir), node)
        return node

    @ray.method(num_returns=2)
    def search(self, chunk: Chunk) -> tuple[Any, ChunkMeta]:
        """Search a chunk and write its shard: (table, meta). Accepted only when the driver commits it."""
        from dav_ray import buffer
        from dav_ray.device import peak_memory_gb

        start = time.monotonic()
        self._use(chunk.policy_version)
        found = self._find(chunk)
        table = buffer.to_table(chunk, found, self._alphabet)
        data, sha256 = buffer.encode(table)
        path = buffer.shard_path(chunk.round, chunk.index, sha256)
        self._storage.write(path, data)
        weights = None if found.log_weight is None else tuple(found.log_weight.tolist())
        return table, ChunkMeta(
            chunk.index,
            path,
            sha256,
            table.num_rows,
            chunk.policy_version,
            chunk.trajectories,
            chunk.conditions,
            tuple(found.reward.tolist()),
            weights,
            tuple(found.ess.tolist()),
            found.cost,
            time.monotonic() - start,
            peak_memory_gb(),
        )

    @ray.method(num_returns=2)
    def evaluate(self, chunk: EvaluationChunk) -> tuple[Any, float]:
        """Fresh samples without search and their measures: (table, seconds)."""
        from dav_ray.evaluate import Judges, measure

        start = time.monotonic()
        self._use(chunk.policy_version)
        self._judges = self._judges or Judges.build(self._spec.config, self._device)
        table = measure(self._diffusion, self._scorer.of(chunk.name), self._judges, chunk)
        return table, time.monotonic() - start

    def _find(self, chunk: Chunk) -> Trajectories:
        from dav_ray.noise import KeyedNoise
        from dav_ray.search.refine import Refine

        noise = KeyedNoise(chunk.seed, chunk.round, chunk.trajectories)
        scorer = self._scorer.of(chunk.name)
        if isinstance(self._search, Refine):
            starts = self._last_round.starts(chunk, self._device)
            return self._search(self._diffusion, scorer, chunk.conditions, noise, starts)
        return self._search(self._diffusion, scorer, chunk.conditions, noise)

    def _use(self, version: int) -> None:
        """Load a policy: from the run's mailbox, or from storage after a restart."""
        if version == self._version:
            return
        from dav_ray import policy

        weights = self._initial if version == 0 else self._posted(version)
        if weights is None:
            weights = policy.read_weights(self._storage, version, self._diffusion)
        policy.set_weights(self._diffusion, weights)
        self._version = version

    def _posted(self, version: int) -> Any:
        try:
            mailbox = ray.get_actor(self._spec.mailbox, namespace=self._spec.namespace)
            return ray.get(mailbox.weights.remote(version), timeout=60)
        except (ValueError, exceptions.RayActorError, exceptions.GetTimeoutError):
            return None  # the mailbox is rebuilt or gone: storage has every version


def _copy_weights(diffusion: Any) -> Any:
    from dav_ray.policy import get_weights

    return get_weights(diffusion) if diffusion.adapted else None
