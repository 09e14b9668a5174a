"""Runs a `Schedule` of work items on search actors: pull, retry of what a lost worker had, deadlines.

A worker that is not there yet, or was lost, gets work once it answers: pools may grow and shrink within a round. One
that gives no answer in time is started again, and so is one whose node is to be taken away: it ends its item, while the
node stays. Losses of infrastructure are made good; a failure of data ends the run.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import ray
from ray import exceptions

from dav_ray.errors import DataError, DavRayError, DeviceError, RunError, Stopped
from dav_ray.run_dir.records import RunLog
from dav_ray.runtime.cluster.deadlines import not_in_time
from dav_ray.runtime.cluster.draining import Drain, Drains
from dav_ray.runtime.cluster.failures import classify, unwrap
from dav_ray.runtime.interrupt import check
from dav_ray.runtime.search.process import Reply
from dav_ray.runtime.search.schedule import Exhausted, Schedule
from dav_ray.runtime.search.workers import ANSWER_S, SearchTeam
from dav_ray.types import EvaluationChunk

Item = TypeVar("Item")

ATTEMPTS = 10  # per item, counting only losses of infrastructure, and at tables that are lost with their nodes
DELAYS = 3  # per item: workers that gave no answer in time
WAIT_S = 0.5
FETCH_S = 1200.0  # longest wait for a table that is there


@dataclass
class _Running:
    worker: str
    item: Any
    table: Any  # reference to the first result
    since: float
    stopped: bool = False  # it was told to


class Done(NamedTuple):
    """An item with its result. table: a reference to what the worker left in the object store."""

    item: Any
    table: Any
    result: Any


class Dispatcher:
    """Keeps the workers busy. A method call returns two results: a table, left in the object store, and a `Reply`."""

    def __init__(self, team: SearchTeam, log: RunLog) -> None:
        self._team, self._log = team, log
        self._stale: dict[Any, _Running] = {}  # results that are not waited for any more, and who works on them
        self._drains, self._draining = Drains(), dict[str, Drain]()  # workers on nodes that are to be taken away
        self.busy_s = 0.0  # seconds of all workers with items, those in which they waited for rewards left out

    def run(
        self,
        method: str,
        items: Sequence[Item],
        on_results: Callable[[Sequence[Done]], None],
        tick: Callable[[], None] = lambda: None,
        *,
        in_order: bool = False,
    ) -> None:
        """Calls `method` of some worker with every item; the workers are started first where there are none.
        on_results(all that have arrived since the last call); in_order: their consumer waits for the first open item.

        Raises what a data failure raised; RunError where no worker is left, or an item is lost or late too often.
        """
        if items and self._team.ensure():
            self._stale.clear()
            self._draining.clear()
        schedule = Schedule(items, ATTEMPTS, DELAYS, in_order=in_order)
        running: dict[Any, _Running] = {}
        while not schedule.finished:
            check()
            self._leave_draining(schedule, running)
            self._hand_out(schedule, running, method)
            self._log.live("chunks_outstanding", len(running))
            self._log.live("workers", self._team.present, role="search")
            ready = _arrived(running)
            if not running:
                time.sleep(WAIT_S)
            done, failure = self._collect_all(schedule, running, ready)
            if failure is None and not schedule.finished:
                self._hand_out(schedule, running, method)  # before what may take long
            if done:
                on_results(done)
            if failure is not None:
                raise failure
            self._check_deadlines(schedule, running)
            for name in self._team.watch():
                self._draining.pop(name, None)
            tick()
        self._log.live("chunks_outstanding", 0)
        for ref, entry in running.items():
            self._stop(ref, entry)
        self._stale |= running

    def _hand_out(self, schedule: Schedule[Any], running: dict[Any, _Running], method: str) -> None:
        self._forget_stale()
        entries = (*running.values(), *self._stale.values())
        occupied = {entry.worker for entry in entries} | {*self._team.away, *self._draining}
        for name, actor in self._team.actors.items():
            now = time.monotonic()
            if name in occupied or (item := schedule.next(name, now)) is None:
                continue
            table, reply = getattr(actor, method).remote(item, self._team.halvings(name))
            if schedule.doubled(name):
                self._log.event("doubled", worker=name, item=item.name)
            running[reply] = _Running(name, item, table, now)

    def _forget_stale(self) -> None:
        """Workers are free again once they end what is not waited for; one that does not is started again."""
        done, _ = ray.wait(list(self._stale), num_returns=len(self._stale), timeout=0) if self._stale else ([], [])
        for ref in done:
            entry = self._stale.pop(ref)
            try:
                self._reply(entry, ref)
            except _Stopped:
                pass
            except _Lost as lost:
                self._lose(entry, lost)
            except DavRayError as error:  # the item is done, by another worker
                self._log.event("failure_ignored", worker=entry.worker, item=entry.item.name, cause=str(error))
        for ref, entry in list(self._stale.items()):
            if time.monotonic() - entry.since > self._limit_s:
                del self._stale[ref]
                self._hang(entry)

    def _leave_draining(self, schedule: Schedule[Any], running: dict[Any, _Running]) -> None:
        """Moves workers off nodes that are to be taken away: at once where they do nothing that is waited for, else
        when they are done, or when the node's time is over: then their item goes out again."""
        drained = self._drains.ask(self._team.actors)
        if drained is not None:
            for name in drained.keys() - self._draining.keys():
                self._log.event("draining", worker=name, node=drained[name].node)
            self._draining = drained
        held = {entry.worker: ref for ref, entry in running.items()} if self._draining else {}
        for name, drain in self._draining.items():
            if name in self._team.away or (name in held and not drain.over):
                continue
            if name in held:
                entry = running.pop(held[name])
                self._return(schedule.lost, entry, "handed_back", f"the time of node {drain.node} was over")
            self._stale = {ref: entry for ref, entry in self._stale.items() if entry.worker != name}
            self._team.restart(name)

    def _collect_all(
        self, schedule: Schedule[Any], running: dict[Any, _Running], refs: Sequence[Any]
    ) -> tuple[list[Done], DavRayError | None]:
        """What these replies bring, and the first failure among them: what others did is kept all the same."""
        done: list[Done] = []
        failure: DavRayError | None = None
        for ref in refs:
            entry = running.pop(ref)
            try:
                found = self._collect(schedule, entry, ref)
                for other, same in running.items():
                    if found and same.item is entry.item:
                        self._stop(other, same)
                done += found
            except DavRayError as error:
                failure = failure or error
        return done, failure

    def _collect(self, schedule: Schedule[Any], entry: _Running, ref: Any) -> list[Done]:
        """The item with its result; nothing where it has none, or had one before."""
        try:
            reply = self._reply(entry, ref)
        except _Stopped:
            schedule.lost(entry.worker, counts=False)
            return []
        except _Lost as lost:
            memory = self._lose(entry, lost)
            leave = functools.partial(schedule.lost, counts=not memory)
            self._return(leave, entry, "requeued", f"its workers died, the last one of {lost}")
            return []
        now = time.monotonic()
        self.busy_s += max(0.0, now - entry.since - reply.waited_s)
        return [Done(entry.item, entry.table, reply.result)] if schedule.complete(entry.worker, now) else []

    def _reply(self, entry: _Running, ref: Any) -> Reply:
        """_Lost where the worker was, _Stopped where it was told to; else what a data failure raised."""
        try:
            reply: Reply = ray.get(ref, timeout=ANSWER_S)
        except exceptions.TaskCancelledError as error:
            raise _Stopped from error
        except exceptions.RayError as error:
            if isinstance(unwrap(error), Stopped):
                raise _Stopped from error
            fault, cause = classify(error)
            if fault != "data":
                raise _Lost(cause) from error
            if isinstance(cause, DataError) and cause.kept is not None:
                self._log.event("quarantined", worker=entry.worker, item=entry.item.name, file=cause.kept)
            raise _data_failure(entry, cause) from error
        self._team.answered(entry.worker, entry.item.name, reply)
        return reply

    def _stop(self, ref: Any, entry: _Running) -> None:
        """Tell a worker to end what another one has done. It asks for that about twice a second, or at every step."""
        if entry.stopped:
            return
        entry.stopped = True
        ray.cancel(ref, recursive=False)  # what it asked of rewards is answered all the same
        self._log.event("stopped", worker=entry.worker, item=entry.item.name)

    def _lose(self, entry: _Running, lost: _Lost) -> bool:
        """Whether the worker died for want of memory: it is to take less then."""
        self._log.event("worker_lost", worker=entry.worker, item=entry.item.name, cause=str(lost))
        if isinstance(lost.cause, DeviceError):
            self._team.restart(entry.worker)
            return False
        return self._team.lost(entry.worker)

    def _hang(self, entry: _Running) -> None:
        seconds = round(time.monotonic() - entry.since, 1)
        self._log.event("worker_hung", worker=entry.worker, item=entry.item.name, seconds=seconds)
        self._team.restart(entry.worker)

    def _return(self, leave: Callable[[str], Any], entry: _Running, event: str, why: str) -> None:
        """The worker gives no result; its item waits again, unless someone else has it."""
        try:
            again = leave(entry.worker)
        except Exhausted as exhausted:
            raise RunError("search", f"chunk {entry.item.name} was {exhausted}: {why}") from exhausted
        if again is not None:
            self._log.event(event, item=entry.item.name)

    @property
    def _limit_s(self) -> float:
        """Longest wait for a reply."""
        return self._team.role.call_timeout_s

    def _check_deadlines(self, schedule: Schedule[Any], running: dict[Any, _Running]) -> None:
        for ref, entry in list(running.items()):
            if time.monotonic() - entry.since > self._limit_s:
                del running[ref]
                self._hang(entry)
                why = not_in_time("no answer", self._limit_s, "search", "call_timeout_s")
                self._return(schedule.late, entry, "requeued", why)

    def gather(self, chunks: Sequence[EvaluationChunk], tick: Callable[[int], None] = lambda done: None) -> pa.Table:
        """The rows of all chunks, evaluated, in their order. A table that is lost with its node is measured again, and
        is the same. tick(chunks that are here) is called now and then. RunError where tables are lost again and
        again."""
        tables: dict[int, pa.Table] = {}

        def keep(done: Sequence[Done]) -> None:
            for chunk, table, _ in done:
                try:
                    tables[chunk.index] = ray.get(table, timeout=FETCH_S)
                except (exceptions.ObjectLostError, exceptions.GetTimeoutError) as error:
                    cause = type(error).__name__
                    self._log.event("tables_lost", round=chunk.round, item=chunk.name, cause=cause)

        for _ in range(ATTEMPTS):
            missing = [chunk for chunk in chunks if chunk.index not in tables]
            self.run("evaluate", missing, keep, lambda: tick(len(tables)))
            if len(tables) == len(chunks):
                return pa.concat_tables([tables[index] for index in sorted(tables)])
        raise RunError("search", f"tables of {chunks[0].name} and others were lost {ATTEMPTS} times with their nodes")


def _arrived(running: dict[Any, _Running]) -> list[Any]:
    """All replies that are there, once there is one; none after a while without."""
    if not running:
        return []
    refs = list(running)
    if not ray.wait(refs, num_returns=1, timeout=WAIT_S)[0]:
        return []
    return ray.wait(refs, num_returns=len(refs), timeout=0)[0]


class _Stopped(Exception):
    """No result, as nobody wants it any more."""


class _Lost(Exception):
    """No result, through no fault of the data."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause) if isinstance(cause, DeviceError) else type(cause).__name__)
        self.cause = cause


def _data_failure(entry: _Running, cause: BaseException) -> DavRayError:
    if isinstance(cause, DavRayError):
        return cause
    return RunError("search", f"chunk {entry.item.name} on {entry.worker}: {type(cause).__name__}: {cause}")
