"""The run's actors on a Ray cluster: connecting, placing them with a deadline, taking them down."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dav_ray import secrets
from dav_ray.config import Config
from dav_ray.doctor.refusal import refuse_misfits
from dav_ray.errors import RunError
from dav_ray.failures import start_failure
from dav_ray.fleet import FLEET, FleetStart, client_timeout, reward_specs, start_fleet
from dav_ray.interrupt import check, interrupted
from dav_ray.lives import Life
from dav_ray.mstep.mailbox import Mailbox, ask
from dav_ray.mstep.train import Trainer, TrainSpec
from dav_ray.placement import actor_options
from dav_ray.places import log_place
from dav_ray.run_files import RunLog
from dav_ray.search.actor import SearchActor, WorkerSpec
from dav_ray.workers import ANSWER_S

MAILBOX = "mailbox"
POLL_S = 0.5
TRAINER_END_S = 120.0


def _unheard(_: str) -> None:
    """Nobody watches."""


@dataclass
class Session:
    """What a run holds on the cluster."""

    config: Config
    run_dir: str
    namespace: str
    mailbox: Any
    workers: dict[str, Any] = field(default_factory=dict)  # search actors by name
    fleet: Any = None  # the actor that serves the rewards
    trainer: Trainer | None = None
    away: tuple[str, ...] = ()  # search actors that had not found a place when enough of them had
    lives: dict[str, Life] = field(default_factory=dict)  # of the others
    scratch: str = ""  # a folder of the driver's node, for Ray Train's own files
    started: int = 0  # how often the search actors were
    trains: bool = True  # whether there are ranks at all
    embedded: bool = False  # whether Ray ends with this process
    say: Callable[[str], None] = _unheard  # what a person is told of the start

    def start_search(self, log: RunLog) -> bool:
        """Start the search actors, unless they are there: False."""
        if self.workers:
            return False
        role = self.config.roles.search
        self.started += 1
        for i in range(role.replicas):
            self.workers[f"search-{i}"] = self._search_actor(f"search-{i}")
        log.event("actors_started", role="search", actors=len(self.workers))
        return True

    def renew_search(self, name: str) -> Any:
        """Another search actor in the place of one that is gone for good."""
        self.started += 1
        self.workers[name] = self._search_actor(name)
        return self.workers[name]

    def _search_actor(self, name: str) -> Any:
        # the name of an actor that was killed is not free at once
        options = actor_options(self.config.roles.search, f"{name}-{self.started}", self.namespace)
        return ray.remote(SearchActor).options(**options).remote(self._worker_spec())

    def _worker_spec(self) -> WorkerSpec:
        """What a search actor is built from: small, so that it travels with the actor, also when that starts again.
        Chunks name their prompts; only a warm start asks for those of others."""
        config = self.config
        if config.search.kind != "refine":
            config = config.model_copy(update={"prompts": ()})
        timeout = client_timeout(self.config)
        return WorkerSpec(config, self.run_dir, self.namespace, FLEET, timeout, MAILBOX, secrets.known())

    def await_search(self, log: RunLog, look: Callable[[], object] = lambda: None) -> None:
        """Wait until enough of the search actors that were started are up: `lives`; the others are `away`. look: called
        meanwhile, may raise."""
        role = self.config.roles.search
        limit, told = role.start_timeout_s, {"enough": role.least, "say": self.say, "look": look}
        self.lives = _await_ready("search", self.workers, self.run_dir, limit, log, **told)
        self.away = tuple(name for name in self.workers if name not in self.lives)

    def release_search(self, log: RunLog) -> None:
        """End the search actors, so that what they hold serves others."""
        if self.workers:
            log.event("released", role="search", actors=len(self.workers))
        for actor in self.workers.values():
            ray.kill(actor)
        self.workers.clear()

    def ensure_trainer(self, log: RunLog) -> None:
        """Start the ranks that live as long as the run, unless they are there or have been."""
        if self.trains and self.trainer is None and self.config.roles.train.lifetime == "run":
            num = self.config.roles.train.replicas
            self.say(f"starting {num} training rank{'s' * (num > 1)}: usually 15 s, as Ray Train starts with them")
            self.start_trainer("run", log)

    def start_trainer(self, job: str, log: RunLog) -> None:
        """job: a name that no trainer of this session has had."""
        spec = TrainSpec(self.config, self.run_dir, self.namespace, MAILBOX, job)
        self.trainer = Trainer(spec, self.scratch, embedded=self.embedded)
        log.event("actors_started", role="train", actors=self.config.roles.train.replicas)

    def end_trainer(self, log: RunLog) -> None:
        """End the ranks and wait until they are gone. RunError if they don't go."""
        if self.trainer is None:
            return
        ask("driver", "to end the ranks", self.mailbox.stop.remote())
        if not self.trainer.join(TRAINER_END_S):
            raise RunError("train", f"its ranks did not end in {TRAINER_END_S:.0f} s")
        self.trainer = None
        ask("driver", "to open again", self.mailbox.reopen.remote())
        log.event("released", role="train", actors=self.config.roles.train.replicas)

    def stop(self) -> None:
        """End the trainer, then the actors. What they had done is in storage."""
        if interrupted():
            return  # they end with the driver
        with contextlib.suppress(exceptions.RayError):
            ray.get(self.mailbox.stop.remote(), timeout=10)
        if self.trainer is not None:
            self.trainer.join(20)
        for actor in (*self.workers.values(), *filter(None, [self.fleet]), self.mailbox):
            ray.kill(actor)


@contextlib.contextmanager
def session(
    config: Config,
    run_dir: str,
    name: str,
    log: RunLog,
    *,
    train: bool = True,
    embedded: bool = False,
    say: Callable[[str], None] = _unheard,
) -> Iterator[Session]:
    """Start every role and wait for search and reward; the trainer comes up meanwhile. RunError names a role that never
    came up; events tell where each actor is.

    embedded: on a Ray of this machine that ends with this process. Ranks start when `Session.ensure_trainer` is called
    first: where all share a few cores they would only keep the search from its first samples.
    """
    refuse_misfits(config, train=train)
    started = Session(config, run_dir, name, _mailbox(name, 1 + config.lag), trains=train, embedded=embedded, say=say)
    with tempfile.TemporaryDirectory(prefix="dav_ray-", ignore_cleanup_errors=True) as scratch:
        started.scratch = scratch
        try:
            if not embedded:
                started.ensure_trainer(log)
            started.fleet = start_fleet(reward_specs(config, name), run_dir, name)
            started.start_search(log)
            rewards = FleetStart(started.fleet, config, say)
            started.await_search(log, rewards.look)
            rewards.wait()
            yield started
        finally:
            started.stop()


def _mailbox(namespace: str, rounds: int) -> Any:
    """The mailbox's actor, on the driver's node. rounds: how many it holds."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: dict[str, Any] = {"name": MAILBOX, "namespace": namespace, "num_cpus": 0, "scheduling_strategy": here}
    # who polls it makes calls by the hundred thousand: Ray would keep a record of each
    options |= {"max_concurrency": 100, "enable_task_events": False}
    return ray.remote(Mailbox).options(**options).remote(rounds)


def _await_ready(
    role: str,
    actors: dict[str, Any],
    run_dir: str,
    timeout_s: float,
    log: RunLog,
    enough: int | None = None,
    say: Callable[[str], None] = _unheard,
    look: Callable[[], object] = lambda: None,
) -> dict[str, Life]:
    """Wait for the first answer of `enough` actors (all of them), which is given by name. look: called now and
    then, may raise."""
    lives: dict[str, Life] = {}
    waiting = {actor.ready.remote(run_dir): name for name, actor in actors.items()}
    missing = 0 if enough is None else len(actors) - enough
    deadline, lost = time.monotonic() + timeout_s, set[str]()
    while len(waiting) > missing:
        check()
        look()
        ready, _ = ray.wait(list(waiting), num_returns=1, timeout=POLL_S)
        for ref in ready:
            name = waiting.pop(ref)
            try:
                lives[name] = ray.get(ref, timeout=ANSWER_S)
                log_place(log, role, name, lives[name].node)
                say(f"{name} is ready")
            except exceptions.RayError as error:
                if not _died(error):
                    raise start_failure(role, name, error) from error
                if name not in lost:
                    log.event("actor_lost", role=role, actor=name, cause=type(error).__name__)
                lost.add(name)
                time.sleep(POLL_S)
                waiting[actors[name].ready.remote(run_dir)] = name  # Ray starts it again
        if time.monotonic() > deadline:
            names = ", ".join(sorted(waiting.values()))
            raise RunError(
                role,
                f"{names} found no place in {timeout_s:.0f} s (roles.{role}.start_timeout_s); see dav-ray doctor",
            )
    return lives


def _died(error: exceptions.RayError) -> bool:
    """Whether an actor is gone for no reason of its own."""
    return isinstance(error, exceptions.RayActorError) and not error.actor_init_failed
