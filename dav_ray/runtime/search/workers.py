"""The search workers as the driver has them: they are started, awaited, watched, replaced and released here alone.

One that does not answer, or is to leave its node, is ended and started again by Ray; one that Ray has given up, as its
constructor raised, is followed by a new actor.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import exceptions

from dav_ray import redact
from dav_ray.config.schema import Config
from dav_ray.config.sections.prompts import Prompts
from dav_ray.config.sections.roles import PoolRole
from dav_ray.errors import RunError
from dav_ray.run_dir.records import RunLog
from dav_ray.run_dir.tracebacks import as_field
from dav_ray.runtime.cluster.deadlines import POLL_S, Deadline, wait_until
from dav_ray.runtime.cluster.failures import died, start_failure
from dav_ray.runtime.cluster.nodes import log_place
from dav_ray.runtime.cluster.placement import actor_options
from dav_ray.runtime.cluster.ray_private import actor_record, ended_for_memory
from dav_ray.runtime.reward.fleet import FLEET, client_timeout
from dav_ray.runtime.search.calls import AT_ONCE
from dav_ray.runtime.search.process import Process, Reply
from dav_ray.runtime.search.worker import SearchActor, WorkerSpec
from dav_ray.runtime.train.ranks import MAILBOX

MOST_BYTES = 50_000  # of prompts that travel with an actor: what is larger than 100 kB a restart may not find
ANSWER_S = 60.0  # longest wait for what is there already
PING_EVERY_S = 1.0
BAD_STARTS = 6  # in a row, after which a worker is given up; the pauses between them double


def search_team(
    config: Config, run_dir: str, namespace: str, log: RunLog, stage: Callable[[str], None] = lambda _: None
) -> SearchTeam:
    """The search workers of a run, none of them started. stage: prints a line of the start for the user."""
    role, spec, builds = config.roles.search, worker_spec(config, run_dir, namespace), Counter[str]()

    def build(name: str) -> Any:
        builds[name] += 1  # the name of an actor that was killed is not free at once
        options = actor_options(role, f"{name}-{builds[name]}", namespace) | {"max_concurrency": AT_ONCE}
        return ray.remote(SearchActor).options(**options).remote(spec)

    names = [f"search-{i}" for i in range(role.replicas)]
    return SearchTeam(names, build, role, run_dir, log, stage)


def worker_spec(config: Config, run_dir: str, namespace: str) -> WorkerSpec:
    """What a search actor is built from: small, so that it travels with the actor, also when that starts again. Chunks
    name their prompts; without all of them a worker keeps its text encoders, and reads columns in config.yaml."""
    timeout_s, stored = client_timeout(config), False
    if not config.search.facts.starts and len(json.dumps(config.prompts.rows()).encode()) > MOST_BYTES:
        scores = bool(config.evaluate.heldout) or len(config.pooled) < len(config.reward)
        stored = scores and bool(config.prompts.columns)
        config = config.model_copy(update={"prompts": Prompts()})
    return WorkerSpec(config, run_dir, namespace, FLEET, timeout_s, MAILBOX, redact.known(), stored)


@dataclass
class _Away:
    """A worker that is to answer a ping before it gets work."""

    ping: Any
    asked: float
    since: float
    new: bool  # it has never answered
    old: str | None  # the process that was ended: an answer of it is from before
    again: float | None = None  # when it is asked again, as the last answer was none
    reported: bool = False  # that it is late


@dataclass
class SearchTeam:
    """All search workers of a run. `away` are those that can't be given work.

    names: of the workers; build(name): starts an actor, also in the place of one that is gone for good; role: how many
    must be there before work starts, and how long one may take; stage: prints a line of the start for the user.
    """

    names: Sequence[str]
    build: Callable[[str], Any]
    role: PoolRole
    run_dir: str
    log: RunLog
    stage: Callable[[str], None] = lambda _: None
    actors: dict[str, Any] = field(default_factory=dict)  # by name; none before `start` and after `release`
    away: dict[str, _Away] = field(default_factory=dict)
    processes: dict[str, Process] = field(default_factory=dict)  # the last one that answered, by worker
    _halvings: dict[str, int] = field(default_factory=dict)  # of the networks' batches, for want of memory
    _bad_starts: dict[str, int] = field(default_factory=dict)  # in a row
    _cause: str = ""  # why the last bad start was one
    _trace: str | None = None  # where that began

    # -- start and end --------------------------------------------------------------------------------------------

    def ensure(self) -> bool:
        """Start the workers and wait for them, unless they are there: False."""
        if self.actors:
            return False
        self.start()
        self.wait()
        return True

    def start(self) -> None:
        self.actors |= {name: self.build(name) for name in self.names}
        self.log.event("actors_started", role="search", actors=len(self.actors))

    def wait(self, look: Callable[[], object] = lambda: None) -> None:
        """Until enough of the workers have answered; the others are `away`. look: called meanwhile, may raise.
        RunError naming those that found no place in time; what a constructor raised."""
        for held in (self.away, self.processes, self._halvings, self._bad_starts):
            held.clear()
        deadline, lost = Deadline("search", self.role.start_timeout_s), set[str]()
        waiting = {self._ping(name): name for name in self.actors}

        def enough() -> bool:
            if len(waiting) <= len(self.actors) - self.role.least:
                return True
            if deadline.passed:
                raise deadline.error(f"{', '.join(sorted(waiting.values()))} found no place")
            look()
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=POLL_S)
            for ref in ready:
                name = waiting.pop(ref)
                if not self._first_answer(name, ref, lost):
                    waiting[self._ping(name)] = name  # Ray starts it again
            return False

        wait_until(enough, 0.0)
        for name in waiting.values():
            self._ask(name, time.monotonic(), new=True)

    def _first_answer(self, name: str, ref: Any, lost: set[str]) -> bool:
        """Whether the worker is up. lost: workers whose loss is in the events already."""
        try:
            self.processes[name] = ray.get(ref, timeout=ANSWER_S)
        except exceptions.RayError as error:
            if not died(error):
                raise start_failure("search", name, error) from error
            if name not in lost:
                self.log.event("actor_lost", role="search", actor=name, cause=type(error).__name__)
            lost.add(name)
            time.sleep(POLL_S)
            return False
        log_place(self.log, "search", name, self.processes[name].node)
        self.stage(f"{name} is ready")
        return True

    def release(self) -> None:
        """End the workers, so that what they hold serves others."""
        if self.actors:
            self.log.event("released", role="search", actors=len(self.actors))
        self.kill()

    def kill(self) -> None:
        for actor in self.actors.values():
            ray.kill(actor)
        self.actors.clear()

    # -- what the dispatcher sees and reports ---------------------------------------------------------------------

    @property
    def present(self) -> int:
        return len(self.actors) - len(self.away)

    def halvings(self, name: str) -> int:
        """How often the batches of the worker's networks are to be halved."""
        return self._halvings.get(name, 0)

    def answered(self, name: str, item: str, reply: Reply) -> None:
        """Write down what the reply says beside its result."""
        process, before = reply.process, self.processes.get(name)
        self.processes[name] = process
        if before is not None and before.id != process.id:  # it died when it had nothing to do
            self.log.event("worker_restarted", worker=name, node=process.node, pid=process.pid)
            log_place(self.log, "search", name, process.node)
        self._halvings[name] = max(self.halvings(name), reply.halvings)
        for event, fields in reply.events:
            self.log.event(event, worker=name, item=item, **fields)

    def lost(self, name: str) -> bool:
        """Its process has ended; Ray starts another one. Whether Ray ended it for want of memory."""
        self._ask(name, time.monotonic())
        process = self.processes.get(name)
        if process is None or not ended_for_memory(process.worker):
            return False
        self._halve(name, "Ray ended it, as its node was running out of memory")
        return True

    def restart(self, name: str) -> None:
        """End its process; Ray starts another one, where nothing drains. A process that is stopped goes too, in some
        5 s."""
        ray.kill(self.actors[name], no_restart=False)
        process, away = self.processes.get(name), self.away.get(name)
        self._ask(name, time.monotonic() if away is None else away.since, old=process.id if process else None)

    def _halve(self, name: str, cause: str) -> None:
        """The worker died for want of memory: it is to take less at once."""
        self._halvings[name] = self.halvings(name) + 1
        self.log.event("out_of_memory", worker=name, halvings=self._halvings[name], cause=cause)

    # -- workers that come, or come back --------------------------------------------------------------------------

    def watch(self) -> list[str]:
        """Names of those that came up since the last call: they found a place, or Ray started them again. RunError if
        nobody is left."""
        now, up = time.monotonic(), []
        self._check_any_left(now)
        for name, away in list(self.away.items()):
            if away.again is not None:
                if now >= away.again:
                    self._ask_again(name, away)
            elif not ray.wait([away.ping], timeout=0)[0]:
                self._check_late(name, away, now)
            elif (process := self._process(name, away, now)) is not None:
                self._up(name, away, process)
                up.append(name)
        return up

    def _ask(self, name: str, since: float, *, new: bool = False, old: str | None = None) -> None:
        self.away[name] = _Away(self._ping(name), time.monotonic(), since, new, old)

    def _ask_again(self, name: str, away: _Away) -> None:
        if actor_record(self.actors[name]).state == "DEAD":
            self.actors[name] = self.build(name)
        away.ping, away.asked, away.again = self._ping(name), time.monotonic(), None

    def _ping(self, name: str) -> Any:
        return self.actors[name].ready.remote(self.run_dir)

    def _process(self, name: str, away: _Away, now: float) -> Process | None:
        """Which process answered the ping; None where none did, or the one that was ended."""
        away.again = now + PING_EVERY_S
        try:
            process: Process = ray.get(away.ping, timeout=ANSWER_S)
        except exceptions.RayError as error:
            if isinstance(error, exceptions.RayTaskError) or actor_record(self.actors[name]).state == "DEAD":
                self._bad_start(name, away, error)
            return None
        return process if process.id != away.old else None

    def _bad_start(self, name: str, away: _Away, error: exceptions.RayError) -> None:
        bad = self._bad_starts[name] = self._bad_starts.get(name, 0) + 1
        failure = start_failure("search", name, error)
        self._cause, self._trace = str(failure).removeprefix("search: "), getattr(failure, "trace", None)
        self.log.event("worker_failed", worker=name, cause=self._cause, **as_field(failure))
        away.again = time.monotonic() + PING_EVERY_S * 2 ** (bad - 1)
        if bad == BAD_STARTS:
            away.again = math.inf
            self.log.event("worker_given_up", worker=name, starts=bad)

    def _up(self, name: str, away: _Away, process: Process) -> None:
        del self.away[name]
        self._bad_starts.pop(name, None)
        before, self.processes[name] = self.processes.get(name), process
        self.log.event("worker_joined" if away.new else "worker_back", worker=name, pid=process.pid)
        log_place(self.log, "search", name, process.node)
        same_node = before is not None and away.old is None and before.node == process.node
        if before is not None and same_node and before.memory_kills < process.memory_kills:
            self._halve(name, "the kernel ended a process of its node")

    def _check_late(self, name: str, away: _Away, now: float) -> None:
        """One that is alive and says nothing is ended; another waits for its place."""
        if now - away.asked <= self.role.start_timeout_s:
            return
        if actor_record(self.actors[name]).state == "ALIVE":
            self.log.event("worker_hung", worker=name, seconds=round(now - away.asked))
            self.restart(name)
        elif not away.reported:
            away.reported = True
            self.log.event("worker_late", worker=name, seconds=round(now - away.asked))

    def _check_any_left(self, now: float) -> None:
        if len(self.away) < len(self.actors):
            return
        cause = f": {self._cause}" if self._cause else ""
        if all(away.again == math.inf for away in self.away.values()):
            gone = RunError("search", f"no worker is left{cause}")
            gone.trace = self._trace
            raise gone
        last = max(away.since for away in self.away.values())
        deadline = Deadline("search", self.role.start_timeout_s, began=last)
        if deadline.passed:
            raise deadline.error(f"no worker is left; none of {len(self.away)} came back", cause)
