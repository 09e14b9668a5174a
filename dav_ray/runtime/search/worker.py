"""A search worker: a thin actor that builds the model on its own node and serves chunks with the policy they name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import ray
from ray import exceptions

from dav_ray.config.figures import precision
from dav_ray.config.schema import Config
from dav_ray.errors import DataError, DavRayError, DeviceError, RunError
from dav_ray.runtime.accepted import SearchedChunk
from dav_ray.runtime.cluster.device import given_device
from dav_ray.runtime.search.chunk_shard import store
from dav_ray.runtime.search.evidence import quarantined
from dav_ray.runtime.search.one_at_a_time import OneAtATime
from dav_ray.runtime.search.process import Process, Reply
from dav_ray.runtime.spent import Meter, Spent
from dav_ray.types import Chunk, EvaluationChunk, Trajectories

if TYPE_CHECKING:
    from dav_ray.diffusion.base import Diffusion, Room
    from dav_ray.search.base import Search, WarmSearch
    from dav_ray.search.turns import Turns

Found = TypeVar("Found")
Events = tuple[tuple[str, dict[str, Any]], ...]

NODE_GROUP = "ray.io/node-group"  # Ray's label: the kind of node, as the cluster's file names it


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
    stored_columns: bool = False  # those of the prompts are to be read in config.yaml


class SearchActor:
    """Two calls may be made at a time: one computes, while the other stores what it found."""

    def __init__(self, spec: WorkerSpec) -> None:
        from dav_ray.config.build import for_search
        from dav_ray.diffusion.device import keep_freed_memory, keep_to_share
        from dav_ray.redact import learn
        from dav_ray.registry import on_path
        from dav_ray.rewards.base import Scorer
        from dav_ray.run_dir import policy
        from dav_ray.run_dir.storage.uri import open_storage
        from dav_ray.runtime.reward.replica import FleetClient
        from dav_ray.runtime.search.rewards import WorkerRewards, with_stored_columns
        from dav_ray.runtime.search.starts import LastRound

        keep_freed_memory()
        learn(spec.secrets)
        here = ray.get_runtime_context()
        self._process = Process.begin(here.get_node_id(), here.get_worker_id())
        self._halvings, self._computing = 0, OneAtATime()
        self._spec, config = spec, spec.config
        self._set_threads()
        on_path(config.modules)
        device = given_device()
        if device == "cuda":
            keep_to_share(config.roles.search.gpus)
        self._version, self._device = 0, device
        self._storage = open_storage(spec.run_dir)
        if spec.stored_columns:
            config = with_stored_columns(config, self._storage)
            self._spec = replace(spec, config=config)
        self._meter = Meter(device, precision(config), str(here.get_node_labels().get(NODE_GROUP, "")))
        self._events: list[tuple[str, dict[str, Any]]] = []  # of the chunk in hand
        self._diffusion = self._with_rooms(for_search(config, device=device))
        if config.init.run is not None:
            policy.start(self._storage, self._diffusion)
        fleet = FleetClient(spec.fleet, spec.namespace, spec.fleet_timeout_s)
        self._rewards = WorkerRewards(config, fleet, self._storage, device)
        names, weights = [r.label for r in config.reward], [r.weight for r in config.reward]
        self._scorer = Scorer(names, weights, self._rewards, pixels=self._rewards.pixels)
        self._strategy: tuple[float | None, Search] | None = None  # alpha, and the search at it
        self._last_round = LastRound(config, self._storage)
        self._alphabet = getattr(self._diffusion, "alphabet", None)  # of sequences
        self._judges: Any = None
        self._initial = _copy_weights(self._diffusion)

    def ready(self, run_dir: str) -> Process:
        """Which process this is, once the model stands and has nothing to do, and the run directory is reachable."""
        from dav_ray.run_dir.marker import check_marker
        from dav_ray.run_dir.storage.uri import open_storage

        check_marker(open_storage(run_dir), self._process.node)
        with self._turn():  # a call may go on whose answer a broken connection has lost
            return self._process.now()

    @ray.method(num_returns=2)
    def search(self, chunk: Chunk, halvings: int = 0) -> tuple[Any, Reply]:
        """Search a chunk and write its shard: (table, reply with a SearchedChunk). It is accepted once the driver
        commits it. halvings: how often the networks' batches are halved at least, as memory ran out before."""
        from dav_ray.diffusion.device import peak_memory_gb

        with self._turn():
            sent = self._rewards.sent_bytes
            found, spent, reply = self._work(lambda: self._find(chunk).on_host(), chunk, halvings)
            sent, missed, peak_gb = self._rewards.sent_bytes - sent, self._rewards.deviations(), peak_memory_gb()
        table, shard, scores = store(self._storage, chunk, found, self._alphabet, self._scorer.names)
        searched = SearchedChunk(shard, scores, found.cost, spent, peak_gb, sent, missed)
        return table, replace(reply, result=searched)

    @ray.method(num_returns=2)
    def evaluate(self, chunk: EvaluationChunk, halvings: int = 0) -> tuple[Any, Reply]:
        """Fresh samples without search and their measures: (table, reply with the seconds it took)."""
        with self._turn():
            table, spent, reply = self._work(lambda: self._measure(chunk), chunk, halvings)
        return table, replace(reply, result=spent.seconds)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """This call computes, and no other one. Raises Stopped where it is not wanted any more."""
        with self._computing.turn(ray.get_runtime_context().is_canceled):
            self._set_threads()
            yield

    def _set_threads(self) -> None:
        """Of torch: for the thread that says it, and for those that it starts."""
        import torch

        torch.set_num_threads(self._spec.config.roles.search.threads)

    def _work(
        self, work: Callable[[], Found], chunk: Chunk | EvaluationChunk, halvings: int
    ) -> tuple[Found, Spent, Reply]:
        """What `work` finds, what it took, and the reply that is to have the result."""
        self._meter.start()
        found, events = self._found(work, chunk, halvings)
        spent, told = self._meter.read(), (*events, *self._rewards.events())
        return found, spent, Reply(None, self._process.now(), self._halvings, told, spent.seconds - spent.waited_s)

    def _found(self, work: Callable[[], Found], chunk: Chunk | EvaluationChunk, halvings: int) -> tuple[Found, Events]:
        """What `work` finds with the policy that the chunk names; less at once where memory does not suffice. Evidence
        is kept of data that fails."""
        import torch

        from dav_ray.diffusion.device import in_a_line

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
            raise quarantined(self._storage, chunk, error, self._name(), self._process) from error

    def _within_memory(
        self, work: Callable[[], Found], chunk: Chunk | EvaluationChunk, halvings: int
    ) -> tuple[Found, Events]:
        """What `work` finds. A call of a network that runs out of memory is made again in halves, and the chunk goes on
        (`Room.each`); where memory runs out anywhere else, the chunk starts again with half of everything."""
        from dav_ray.diffusion.base import NoRoom
        from dav_ray.diffusion.device import free_memory, in_a_line, out_of_memory

        self._events.clear()
        while self._halvings < halvings:  # the worker that had the chunk before died
            self._halve(chunk, "it ended workers")
        while True:
            try:
                return work(), tuple(self._events)
            except NoRoom as error:
                raise self._too_large(chunk, str(error)) from error
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                cause = in_a_line(error)
            free_memory()  # what the frames held, now that they are gone
            self._halve(chunk, cause)
            for room in all_rooms(self._diffusion):
                self._note(room, cause)

    def _with_rooms(self, diffusion: Diffusion) -> Diffusion:
        """The model, which says where memory ran out, and how long it decodes."""
        watched: Any = diffusion
        watched.decode = self._meter.watched(diffusion.decode)
        for room in all_rooms(diffusion):
            room.told = self._note
        return diffusion

    def _note(self, room: Room, cause: str) -> None:
        from dav_ray.diffusion.device import memory_in_words

        found = {"of": room.name, "micro_batch": room.limit, "took": memory_in_words(), "cause": cause}
        self._events.append(("out_of_memory", found))

    def _halve(self, chunk: Chunk | EvaluationChunk, cause: str) -> None:
        """From now on half as many states go through the networks at once. RunError where it was one."""
        rooms, search = all_rooms(self._diffusion), self._spec.config.search
        if not any(room.most for room in rooms):  # a new process: nothing went through yet
            for room in rooms:
                room.calls(len(chunk.conditions) * search.candidates * search.particles)
        if not any([room.halve() for room in rooms]):
            raise self._too_large(chunk, cause)
        self._halvings += 1

    def _too_large(self, chunk: Chunk | EvaluationChunk, cause: str) -> RunError:
        from dav_ray.diffusion.device import memory_in_words

        words = f"chunk {chunk.name} on {self._name()}: one state at a time does not fit in memory"
        return RunError("search", f"{words}, with {memory_in_words()} taken ({cause})")

    def _name(self) -> str:
        return ray.get_runtime_context().get_actor_name() or "a search worker"

    def _measure(self, chunk: EvaluationChunk) -> Any:
        from dav_ray.evaluation.measure import Judges, measure

        self._judges = self._judges or Judges.build(self._spec.config, self._device)
        scorer, stop = self._scorer.of(chunk.name, self._meter.waiting), ray.get_runtime_context().is_canceled
        return measure(self._diffusion, scorer, self._judges, chunk, stop)

    def _find(self, chunk: Chunk) -> Trajectories:
        from dav_ray.search.turns import Turns, in_turns, join

        search, turns = self._spec.config.search, Turns(self._diffusion)
        parts = chunk.parts(search.parts, together=search.facts.together)
        with self._meter.all_but(turns):
            return join(in_turns(turns, parts, self._find_part, ray.get_runtime_context().is_canceled))

    def _find_part(self, chunk: Chunk, turns: Turns) -> Trajectories:
        from dav_ray.diffusion.noise import KeyedNoise

        noise = KeyedNoise(chunk.seed, chunk.round, chunk.trajectories)
        scorer, search = self._scorer.of(chunk.name, turns.waiting), self._search_at(chunk.alpha)
        if self._spec.config.search.facts.starts:
            starts = self._last_round.starts(chunk, self._device)
            return cast("WarmSearch", search)(self._diffusion, scorer, chunk.conditions, noise, starts)
        return search(self._diffusion, scorer, chunk.conditions, noise)

    def _search_at(self, alpha: float | None) -> Search:
        from dav_ray.config.build import strategy

        if self._strategy is None or self._strategy[0] != alpha:
            config, fitted = self._spec.config.search, self._spec.config.mstep
            kept = {"blend": fitted.candidates == "all", "complete": fitted.target == "completed"}
            self._strategy = alpha, strategy(config, alpha, **kept)
        return self._strategy[1]

    def _use(self, version: int) -> None:
        """Load a policy: from the run's mailbox, or from storage after a restart."""
        if version == self._version:
            return
        from dav_ray.run_dir import policy

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
        from dav_ray.config.build import for_search

        del self._diffusion  # there may be no place for two
        self._diffusion = self._with_rooms(for_search(self._spec.config, device=self._device))
        self._version = 0

    def _posted(self, version: int) -> Any:
        try:
            mailbox = ray.get_actor(self._spec.mailbox, namespace=self._spec.namespace)
            held = ray.get(mailbox.weights.remote(version), timeout=60)
            return ray.get(held[0], timeout=60) if held else None
        except (ValueError, exceptions.RayError):
            return None  # the mailbox is rebuilt or gone: storage has every version


def all_rooms(diffusion: Diffusion) -> tuple[Room, ...]:
    return (*diffusion.rooms, diffusion.graphs)


def _copy_weights(diffusion: Any) -> Any:
    from dav_ray.run_dir.policy import get_weights

    return get_weights(diffusion) if diffusion.adapted else None
