"""A search worker: a thin actor that builds the model on its own node and serves chunks with the policy they name."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray import exceptions

from dav_ray.config import Config
from dav_ray.errors import DataError, DavRayError, DeviceError, RunError
from dav_ray.failures import TRACE
from dav_ray.lives import Answer, Life
from dav_ray.reward_columns import PREFIX, shown
from dav_ray.tracebacks import innermost
from dav_ray.types import Chunk, Cost, EvaluationChunk, Trajectories

if TYPE_CHECKING:
    from dav_ray.search.base import Search
    from dav_ray.search.parts import Turns

Found = TypeVar("Found")
Events = tuple[tuple[str, dict[str, Any]], ...]


@dataclass(frozen=True)
class WorkerSpec:
    """What an actor is built from: light and picklable."""

    config: Config
    run_dir: str
    namespace: str
    fleet: str  # the actor that serves the rewards
    fleet_timeout_s: float
    mailbox: str  # the actor that hands out policies within the run
    secrets: Mapping[str, str] = field(default_factory=dict)  # that no file may hold


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
    each: Mapping[str, tuple[float | None, ...]]  # what each of several rewards said, by name
    cost: Cost
    seconds: float
    memory_gb: float  # most GPU memory of the worker so far; 0 without a GPU
    choices: tuple[tuple[float, ...], ...] | None  # [2, K], mean over trajectories (`search.choices`)


class SearchActor:
    def __init__(self, spec: WorkerSpec) -> None:
        import torch

        from dav_ray import policy
        from dav_ray.device import keep_freed_memory
        from dav_ray.diffusion.families import for_search
        from dav_ray.module_path import on_path
        from dav_ray.rewards.actor import FleetClient
        from dav_ray.rewards.base import Scorer
        from dav_ray.search.last_round import LastRound
        from dav_ray.secrets import learn
        from dav_ray.storage import open_storage

        keep_freed_memory()
        learn(spec.secrets)
        here = ray.get_runtime_context()
        self._life = Life.begin(here.get_node_id(), here.get_worker_id())
        self._halvings = 0
        torch.set_num_threads(spec.config.roles.search.threads)
        config = spec.config
        on_path(config.modules)
        device = "cuda" if ray.get_gpu_ids() else "cpu"  # what Ray gave, not what the environment shows
        self._spec, self._version, self._device = spec, 0, device
        self._storage = open_storage(spec.run_dir)
        self._diffusion = for_search(config, device=device)
        policy.start(self._storage, config, self._diffusion)
        fleet = FleetClient(spec.fleet, spec.namespace, spec.fleet_timeout_s)
        self._scorer = Scorer([r.label for r in config.reward], [r.weight for r in config.reward], fleet)
        self._strategy: tuple[float | None, Search] | None = None  # alpha, and the search at it
        self._last_round = LastRound(config, self._storage)
        self._alphabet = getattr(self._diffusion, "alphabet", None)  # of sequences
        self._judges: Any = None
        self._initial = _copy_weights(self._diffusion)

    def ready(self, run_dir: str) -> Life:
        """Which life this is, once the model stands and the run directory is reachable."""
        from dav_ray.run_files import check_marker
        from dav_ray.storage import open_storage

        check_marker(open_storage(run_dir), self._life.node)
        return self._life.now()

    @ray.method(num_returns=2)
    def search(self, chunk: Chunk, halvings: int = 0) -> tuple[Any, Answer]:
        """Search a chunk and write its shard: (table, answer with a ChunkMeta). Accepted only when the driver commits
        it. halvings: how often the networks' batches are halved at least, as memory ran out before."""
        from dav_ray import buffer
        from dav_ray.device import peak_memory_gb

        start = time.monotonic()
        found, events = self._work(lambda: self._find(chunk), chunk, halvings)
        table = buffer.to_table(chunk, found, self._alphabet, self._scorer.names)
        data, sha256 = buffer.encode(table)
        path = buffer.shard_path(chunk.round, chunk.index, sha256)
        self._storage.write(path, data)
        weights = None if found.log_weight is None else tuple(found.log_weight.tolist())
        meta = ChunkMeta(
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
            {name: tuple(table.column(f"{PREFIX}{name}").to_pylist()) for name in shown(self._scorer.names)},
            found.cost,
            time.monotonic() - start,
            peak_memory_gb(),
            None if found.choices is None else tuple(map(tuple, found.choices.mean(0).tolist())),
        )
        return table, self._answer(meta, events)

    @ray.method(num_returns=2)
    def evaluate(self, chunk: EvaluationChunk, halvings: int = 0) -> tuple[Any, Answer]:
        """Fresh samples without search and their measures: (table, answer with the seconds it took)."""
        start = time.monotonic()
        table, events = self._work(lambda: self._measure(chunk), chunk, halvings)
        return table, self._answer(time.monotonic() - start, events)

    def _answer(self, meta: Any, events: Events) -> Answer:
        return Answer(meta, self._life.now(), self._halvings, events)

    def _work(self, work: Callable[[], Found], chunk: Chunk | EvaluationChunk, halvings: int) -> tuple[Found, Events]:
        """What `work` finds with the policy that the chunk names; less at once where memory does not suffice. Evidence
        is kept of data that fails."""
        import torch

        from dav_ray.device import in_a_line

        self._use(chunk.policy_version)
        try:
            return self._within_memory(work, chunk, halvings)
        except (exceptions.RayError, OSError):
            raise  # nothing is wrong with the chunk
        except torch.AcceleratorError as error:
            raise DeviceError("search", f"{self._name()}: {in_a_line(error)}") from error
        except Exception as error:
            if isinstance(error, DavRayError) and not isinstance(error, DataError):
                raise
            raise self._quarantined(chunk, error) from error

    def _within_memory(
        self, work: Callable[[], Found], chunk: Chunk | EvaluationChunk, halvings: int
    ) -> tuple[Found, Events]:
        from dav_ray.device import free_memory, in_a_line, memory_in_words, out_of_memory

        events: list[tuple[str, dict[str, Any]]] = []
        while self._halvings < halvings:  # whoever was at it before died
            self._halve(chunk, "it ended workers")
        while True:
            try:
                return work(), tuple(events)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                cause = in_a_line(error)
            free_memory()  # what the frames held, now that they are gone
            self._halve(chunk, cause)
            limit = min([room.limit for room in self._diffusion.rooms], default=1)
            events.append(("out_of_memory", {"micro_batch": limit, "took": memory_in_words(), "cause": cause}))

    def _halve(self, chunk: Chunk | EvaluationChunk, cause: str) -> None:
        """From now on half as many states go through the networks at once. RunError where it was one."""
        from dav_ray.device import memory_in_words

        rooms, search = self._diffusion.rooms, self._spec.config.search
        if not any(room.most for room in rooms):  # a new process: nothing went through yet
            for room in rooms:
                room.calls(len(chunk.conditions) * search.candidates * search.particles)
        if not any([room.halve() for room in rooms]):
            words = f"chunk {chunk.name} on {self._name()}: one state at a time does not fit in memory"
            raise RunError("search", f"{words}, with {memory_in_words()} taken ({cause})")
        self._halvings += 1

    def _quarantined(self, chunk: Chunk | EvaluationChunk, error: Exception) -> DataError:
        from dav_ray.driver import library_versions
        from dav_ray.quarantine import Scene, keep

        name = type(error).__name__
        fault = error
        trace = "".join(traceback.format_exception(error))
        if not isinstance(fault, DataError):
            words = f"chunk {chunk.name} on {self._name()}: {name}: {error} ({innermost(error)})"
            fault = DataError("search", words, name)
            fault.trace = trace[-TRACE:]
        try:
            scene = Scene(self._name(), self._life.node, self._life.pid, trace, library_versions())
            return keep(self._storage, chunk, fault, scene)
        except (OSError, DavRayError) as unkept:
            bare = DataError(fault.role, f"{fault.words}; evidence could not be kept: {unkept}", fault.what, fault.rows)
            bare.trace = fault.trace
            return bare

    def _name(self) -> str:
        return ray.get_runtime_context().get_actor_name() or "a search worker"

    def _measure(self, chunk: EvaluationChunk) -> Any:
        from dav_ray.evaluate import Judges, measure

        self._judges = self._judges or Judges.build(self._spec.config, self._device)
        return measure(self._diffusion, self._scorer.of(chunk.name), self._judges, chunk)

    def _find(self, chunk: Chunk) -> Trajectories:
        from dav_ray.search.parts import in_turns, join

        search = self._spec.config.search
        parts = chunk.parts(search.parts, together=search.kind == "smc")
        return join(in_turns(self._diffusion, parts, self._find_part))

    def _find_part(self, chunk: Chunk, turns: Turns) -> Trajectories:
        from dav_ray.noise import KeyedNoise
        from dav_ray.search.refine import Refine

        noise = KeyedNoise(chunk.seed, chunk.round, chunk.trajectories)
        scorer, search = self._scorer.of(chunk.name, turns.waiting), self._search_at(chunk.alpha)
        if isinstance(search, Refine):
            starts = self._last_round.starts(chunk, self._device)
            return search(self._diffusion, scorer, chunk.conditions, noise, starts)
        return search(self._diffusion, scorer, chunk.conditions, noise)

    def _search_at(self, alpha: float | None) -> Search:
        from dav_ray.search.base import strategy

        if self._strategy is None or self._strategy[0] != alpha:
            config, fitted = self._spec.config.search, self._spec.config.mstep
            kept = {"blend": fitted.candidates == "all", "complete": fitted.target == "completed"}
            self._strategy = alpha, strategy(config, alpha, **kept)
        return self._strategy[1]

    def _use(self, version: int) -> None:
        """Load a policy: from the run's mailbox, or from storage after a restart."""
        if version == self._version:
            return
        from dav_ray import policy

        if version == 0 and self._initial is None and self._spec.config.init.run is None:
            self._rebuild()
            return
        weights = self._initial if version == 0 else self._posted(version)
        if weights is None:
            weights = policy.read_weights(self._storage, version, self._diffusion)
        policy.set_weights(self._diffusion, weights)
        self._version = version

    def _rebuild(self) -> None:
        """The pretrained model again, of whose full weights no copy is kept."""
        from dav_ray.diffusion.families import for_search

        del self._diffusion  # there may be no place for two
        self._diffusion = for_search(self._spec.config, device=self._device)
        self._version = 0

    def _posted(self, version: int) -> Any:
        try:
            mailbox = ray.get_actor(self._spec.mailbox, namespace=self._spec.namespace)
            held = ray.get(mailbox.weights.remote(version), timeout=60)
            return ray.get(held[0], timeout=60) if held else None
        except (ValueError, exceptions.RayError):
            return None  # the mailbox is rebuilt or gone: storage has every version


def _copy_weights(diffusion: Any) -> Any:
    from dav_ray.policy import get_weights

    return get_weights(diffusion) if diffusion.adapted else None
