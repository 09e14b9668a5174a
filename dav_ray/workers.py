"""The search workers as the dispatcher sees them: who is there, who is awaited and since when, which life each leads.

One that does not answer, or is to leave its node, is ended and started again by Ray; one that Ray has given up, as its
constructor raised, is followed by a new actor.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray import exceptions
from ray._private import state
from ray.core.generated import common_pb2, gcs_pb2

from dav_ray.errors import RunError
from dav_ray.failures import start_failure
from dav_ray.lives import Answer, Life
from dav_ray.places import log_place
from dav_ray.run_files import RunLog
from dav_ray.tracebacks import as_field

ANSWER_S = 60.0  # longest wait for what is there already
PING_EVERY_S = 1.0
BAD_STARTS = 6  # in a row, after which a worker is given up; the pauses between them double


@dataclass
class _Away:
    """A worker from which an answer is awaited."""

    ping: Any
    asked: float
    since: float
    new: bool  # it was never there
    old: str | None  # the life that was ended: an answer of it is from before
    again: float | None = None  # when it is asked again, as the last answer was none
    told: bool = False  # that it is late


class Workers:
    """handles: actors by name; limit_s: longest wait for one; `renew(name)` gives another actor in the place of one
    that is gone for good."""

    def __init__(
        self, handles: dict[str, Any], run_dir: str, log: RunLog, limit_s: float, renew: Callable[[str], Any]
    ) -> None:
        self.handles, self.away = handles, dict[str, _Away]()
        self._run_dir, self._log, self._limit_s, self._renew = run_dir, log, limit_s, renew
        self._lives: dict[str, Life] = {}
        self._halvings: dict[str, int] = {}  # of the networks' batches, for want of memory
        self._bad_starts: dict[str, int] = {}  # in a row
        self._cause = ""  # why the last bad start was one
        self._trace: str | None = None  # where that began

    def expect(self, names: Iterable[str], lives: Mapping[str, Life]) -> None:
        """The workers were started; these names have not answered yet, the others did, in these lives."""
        for held in (self.away, self._halvings, self._bad_starts):
            held.clear()
        self._lives = dict(lives)
        for name in names:
            self._ask(name, time.monotonic(), new=True)

    @property
    def there(self) -> int:
        return len(self.handles) - len(self.away)

    def halvings(self, name: str) -> int:
        return self._halvings.get(name, 0)

    def answered(self, name: str, item: str, answer: Answer) -> None:
        """Write down what the answer tells beside its result."""
        life, before = answer.life, self._lives.get(name)
        self._lives[name] = life
        if before is not None and before.id != life.id:  # it died when it had nothing to do
            self._log.event("worker_restarted", worker=name, node=life.node, pid=life.pid)
            log_place(self._log, "search", name, life.node)
        self._halvings[name] = max(self.halvings(name), answer.halvings)
        for event, fields in answer.events:
            self._log.event(event, worker=name, item=item, **fields)

    def lost(self, name: str) -> bool:
        """Its life has ended; Ray starts it again. Whether Ray ended it for want of memory."""
        self._ask(name, time.monotonic())
        life = self._lives.get(name)
        if life is None or not _starved(life):
            return False
        self.halve(name, "Ray ended it, as its node was running out of memory")
        return True

    def restart(self, name: str) -> None:
        """End its life; Ray starts it again, where nothing drains. A process that is stopped goes too, in some 5 s."""
        ray.kill(self.handles[name], no_restart=False)
        life, away = self._lives.get(name), self.away.get(name)
        self._ask(name, time.monotonic() if away is None else away.since, old=life.id if life else None)

    def halve(self, name: str, cause: str) -> None:
        """The worker died for want of memory: it is to take less at once."""
        self._halvings[name] = self.halvings(name) + 1
        self._log.event("out_of_memory", worker=name, halvings=self._halvings[name], cause=cause)

    def probe(self) -> list[str]:
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
            elif (life := self._life(name, away, now)) is not None:
                self._up(name, away, life)
                up.append(name)
        return up

    def _ask(self, name: str, since: float, *, new: bool = False, old: str | None = None) -> None:
        self.away[name] = _Away(self._ping(name), time.monotonic(), since, new, old)

    def _ask_again(self, name: str, away: _Away) -> None:
        if _state(self.handles[name]) == "DEAD":
            self.handles[name] = self._renew(name)
        away.ping, away.asked, away.again = self._ping(name), time.monotonic(), None

    def _ping(self, name: str) -> Any:
        return self.handles[name].ready.remote(self._run_dir)

    def _life(self, name: str, away: _Away, now: float) -> Life | None:
        """What the ping found; None where that is no life, or the one that was ended."""
        away.again = now + PING_EVERY_S
        try:
            life: Life = ray.get(away.ping, timeout=ANSWER_S)
        except exceptions.RayError as error:
            if isinstance(error, exceptions.RayTaskError) or _state(self.handles[name]) == "DEAD":
                self._bad_start(name, away, error)
            return None
        return life if life.id != away.old else None

    def _bad_start(self, name: str, away: _Away, error: exceptions.RayError) -> None:
        bad = self._bad_starts[name] = self._bad_starts.get(name, 0) + 1
        failure = start_failure("search", name, error)
        self._cause, self._trace = str(failure).removeprefix("search: "), getattr(failure, "trace", None)
        self._log.event("worker_failed", worker=name, cause=self._cause, **as_field(failure))
        away.again = time.monotonic() + PING_EVERY_S * 2 ** (bad - 1)
        if bad == BAD_STARTS:
            away.again = math.inf
            self._log.event("worker_given_up", worker=name, starts=bad)

    def _up(self, name: str, away: _Away, life: Life) -> None:
        del self.away[name]
        self._bad_starts.pop(name, None)
        before, self._lives[name] = self._lives.get(name), life
        self._log.event("worker_joined" if away.new else "worker_back", worker=name, pid=life.pid)
        log_place(self._log, "search", name, life.node)
        died = before is not None and away.old is None and before.node == life.node
        if before is not None and died and before.memory_kills < life.memory_kills:
            self.halve(name, "the kernel ended a process of its node")

    def _check_late(self, name: str, away: _Away, now: float) -> None:
        """One that is alive and says nothing is ended; another waits for its place."""
        if now - away.asked <= self._limit_s:
            return
        if _state(self.handles[name]) == "ALIVE":
            self._log.event("worker_hung", worker=name, seconds=round(now - away.asked))
            self.restart(name)
        elif not away.told:
            away.told = True
            self._log.event("worker_late", worker=name, seconds=round(now - away.asked))

    def _check_any_left(self, now: float) -> None:
        if len(self.away) < len(self.handles):
            return
        cause = f": {self._cause}" if self._cause else ""
        if all(away.again == math.inf for away in self.away.values()):
            gone = RunError("search", f"no worker is left{cause}")
            gone.trace = self._trace
            raise gone
        waited = now - max(away.since for away in self.away.values())  # since the last one went
        if waited > self._limit_s:
            words = f"no worker is left; none of {len(self.away)} came back in {waited:.0f} s"
            raise RunError("search", f"{words} (roles.search.start_timeout_s){cause}")


def _state(actor: Any) -> str:
    """What Ray says of an actor: PENDING_CREATION, ALIVE, RESTARTING or DEAD (for good)."""
    return state.actors(actor._ray_actor_id.hex()).get("State", "")


def _starved(life: Life) -> bool:
    """Whether Ray's memory monitor ended it: the error that the caller of an actor sees does not tell."""
    told = state.state._connect_and_get_accessor().get_worker_info(ray.WorkerID(bytes.fromhex(life.worker)))
    table: Any = gcs_pb2  # generated: not seen by type checkers
    reasons: Any = common_pb2
    return bool(told) and table.WorkerTableData.FromString(told).exit_type == reasons.NODE_OUT_OF_MEMORY
