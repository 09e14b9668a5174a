"""The replicas of one reward: who is there, who gets which requests, how many there should be; pure.

A replica is starting, then standing (its reward is built, its golden scores are not yet reproduced), then free or busy
(admitted). It leaves by `drop`, and is not to come back: another one is started in its place. now: seconds of any
clock that does not go back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dav_ray.config.sections.roles import RewardRole
from dav_ray.runtime.reward.batching import Queue, Request

GROW_AFTER_S = 1.0  # requests that wait for longer call for another replica
LINGER_S = 60.0  # how long a replica beyond the least stays without work
BACK_OFF_S = 60.0  # longest pause between replicas that fail as they start


@dataclass
class _Replica:
    state: Literal["starting", "standing", "free", "busy"]
    since: float  # of the state
    requests: tuple[Request, ...] = ()
    late: bool = False  # `late` has named it


class Pool:
    """role: its replicas (at most), least, idle_s, most, merge, start_timeout_s."""

    def __init__(self, role: RewardRole, now: float, linger_s: float = LINGER_S) -> None:
        self.queue = Queue(role.most, role.merge)
        self.stood = self.served = False  # some replica came up once, was admitted once
        self.refused = 0
        self.failures = 0  # replicas in a row that failed as they started
        self._role, self._linger_s = role, linger_s if role.idle_s is None else min(linger_s, role.idle_s)
        self._replicas: dict[str, _Replica] = {}
        self._dormant = False  # released until the next request
        self._next_start = now
        self._unserved_since = now
        self._counted, self._busy_s, self._admitted_s = now, 0.0, 0.0

    def names(self, *states: str) -> list[str]:
        """Replicas in these states, the one longest in its state first."""
        found = [(replica.since, name) for name, replica in self._replicas.items() if replica.state in states]
        return [name for _, name in sorted(found)]

    @property
    def admitted(self) -> int:
        return len(self.names("free", "busy"))

    @property
    def hopeless(self) -> bool:
        """Every replica that there may be was refused."""
        return not self._replicas and self.refused >= self._role.replicas

    def seconds(self, now: float) -> tuple[float, float]:
        """Busy and admitted so far, over all replicas."""
        self._count(now)
        return self._busy_s, self._admitted_s

    # -- requests -------------------------------------------------------------------------------------------------

    def arrive(self, request: Request) -> None:
        self._dormant = False
        self.queue.add(request)

    def again(self, requests: Iterable[Request]) -> None:
        """Requests of a call that came to nothing."""
        self.queue.put_back(requests)
        self._dormant = self._dormant and not self.queue

    def assign(self, now: float) -> list[tuple[str, list[Request]]]:
        """Calls to make now. The replica that was busy last is asked first, so that the others may be released."""
        calls, free = [], self.names("free")
        while free and self.queue.ready(now):
            requests = self.queue.take(now, len(free))
            name = free.pop()
            self._enter(name, "busy", now)
            self._replicas[name].requests = tuple(requests)
            calls.append((name, requests))
        return calls

    def overdue(self, now: float) -> list[Request]:
        """Taken out of the queue: requests that no replica was there for in start_timeout_s."""
        if self.admitted or now - self._unserved_since <= self._role.start_timeout_s:
            return []
        return self.queue.remove(now - self._role.start_timeout_s)

    # -- replicas that come ---------------------------------------------------------------------------------------

    def to_start(self, now: float) -> int:
        """How many replicas to start now."""
        room = self._role.replicas - self.refused - len(self._replicas)
        if now < self._next_start or room <= 0 or self._dormant:
            return 0
        if len(self._replicas) < self._role.least:
            return min(room, self._role.least - len(self._replicas))
        oldest = self.queue.oldest(now)
        return int(oldest is not None and now - oldest > GROW_AFTER_S and not self.names("starting", "standing"))

    def start(self, name: str, now: float) -> None:
        self._replicas[name] = _Replica("starting", now)

    def stand(self, name: str, now: float) -> None:
        """Its reward is built."""
        self.stood, self.failures = True, 0
        self._enter(name, "standing", now)

    def admit(self, name: str, now: float) -> None:
        self.served = True
        self._enter(name, "free", now)

    def late(self, now: float) -> list[str]:
        """Replicas that found no place in start_timeout_s; each is named once."""
        limit = self._role.start_timeout_s
        starting = [(name, self._replicas[name]) for name in self.names("starting")]
        new = [name for name, replica in starting if now - replica.since > limit and not replica.late]
        for name in new:
            self._replicas[name].late = True
        return new

    # -- replicas that go -----------------------------------------------------------------------------------------

    def finish(self, name: str, now: float) -> None:
        """A busy replica has answered."""
        if name in self._replicas:
            self._enter(name, "free", now)
            self._replicas[name].requests = ()

    def drop(self, name: str, now: float) -> tuple[Request, ...]:
        """The replica is gone; what it had. A second call is fine."""
        self._count(now)
        served = self.admitted
        gone = self._replicas.pop(name, None)
        if served and not self.admitted:
            self._unserved_since = now
        return gone.requests if gone is not None else ()

    def refuse(self, name: str, now: float) -> None:
        """It does not reproduce the golden scores: there will be one replica less."""
        self.drop(name, now)
        self.refused += 1

    def fail(self, name: str, now: float) -> None:
        """It did not come up; the next one waits, longer each time."""
        self.drop(name, now)
        self._next_start = now + min(BACK_OFF_S, 2.0**self.failures)
        self.failures += 1

    def to_end(self, now: float) -> list[str]:
        """Replicas that are not needed any more."""
        idle = self.names("free", "standing")
        if self.queue or not idle:
            return []
        since = {name: self._replicas[name].since for name in idle}
        limit = self._role.idle_s
        if limit is not None and not self.names("busy") and now - max(since.values()) >= limit:
            self._dormant = True
            return [*idle, *self.names("starting")]
        spare = len(self._replicas) - self._role.least
        return [name for name in idle if now - since[name] >= self._linger_s][: max(0, spare)]

    def _enter(self, name: str, state: Literal["standing", "free", "busy"], now: float) -> None:
        self._count(now)
        self._replicas[name].state, self._replicas[name].since = state, now

    def _count(self, now: float) -> None:
        """Add up what was busy and admitted since the last change."""
        passed = now - self._counted
        self._busy_s += passed * len(self.names("busy"))
        self._admitted_s += passed * self.admitted
        self._counted = now
