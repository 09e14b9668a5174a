"""Runs a `Schedule` of work items on search actors: pull, retry of what a lost worker had, deadlines.

A worker that is not there yet, or was lost, gets work once it answers: pools may grow and shrink within a round. One
that gives no answer in time is started again, and so is one whose node is to be taken away: it ends its item, while the
node stays. Losses of infrastructure are made good; a failure of data ends the run.

A worker has a second item at hand while it is at the first one: it computes the one while it stores what it found in
the other. A free worker never waits beside it: it doubles an item that another one has not started.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import ray
from ray import exceptions

from dav_ray.errors import DataError, DavRayError, DeviceError, RunError
from dav_ray.run_dir.records import RunLog
from dav_ray.runtime.cluster.deadlines import not_in_time
from dav_ray.runtime.cluster.draining import Drain, Drains
from dav_ray.runtime.interrupt import check
from dav_ray.runtime.search import answers
from dav_ray.runtime.search.answers import Left, Lost
from dav_ray.runtime.search.calls import Call, Calls
from dav_ray.runtime.search.process import Reply
from dav_ray.runtime.search.schedule import Exhausted, Schedule
from dav_ray.runtime.search.workers import SearchTeam
from dav_ray.types import EvaluationChunk

Item = TypeVar("Item")

ATTEMPTS = 10  # per item, counting only losses of infrastructure, and at tables that are lost with their nodes
DELAYS = 3  # per item: workers that gave no answer in time
FETCH_S = 1200.0  # longest wait for a table that is there


class Done(NamedTuple):
    """An item with its result. table: a reference to what the worker left in the object store."""

    item: Any
    table: Any
    result: Any


class Dispatcher:
    """Keeps the workers busy. A method call returns two results: a table, left in the object store, and a `Reply`."""

    def __init__(self, team: SearchTeam, log: RunLog) -> None:
        self._team, self._log = team, log
        self._stale = Calls()  # those whose results are not waited for any more
        self._drains, self._draining = Drains(), dict[str, Drain]()  # workers on nodes that are to be taken away
        self.busy_s = 0.0  # seconds in which workers computed, all together

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
            self._stale = Calls()
            self._draining.clear()
        schedule = Schedule(items, ATTEMPTS, DELAYS, in_order=in_order)
        running = Calls()
        while not schedule.finished:
            check()
            self._leave_draining(schedule, running)
            self._hand_out(schedule, running, method)
            self._log.live("chunks_outstanding", len(running))
            self._log.live("workers", self._team.present, role="search")
            ready = answers.arrived(running)
            if not running:
                time.sleep(answers.WAIT_S)
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
        for worker in running.workers:
            self._stop(running.of(worker))
        self._stale.take(running)

    def _hand_out(self, schedule: Schedule[Any], running: Calls, method: str) -> None:
        """An item to every worker that has none, and then one more to each that has one."""
        self._forget_stale()
        away = {*self._stale.workers, *self._team.away, *self._draining}
        present = [name for name in self._team.actors if name not in away]
        for ask in (schedule.next, schedule.ahead):
            busy = running.workers
            for name in present:
                if (name in busy) == (ask == schedule.ahead):
                    self._send(schedule, running, method, name, ask(name, time.monotonic()))

    def _send(self, schedule: Schedule[Any], running: Calls, method: str, name: str, item: Any) -> None:
        if item is None:
            return
        table, reply = getattr(self._team.actors[name], method).remote(item, self._team.halvings(name))
        if schedule.doubled(name, item):
            self._log.event("doubled", worker=name, item=item.name)
        running.add(reply, Call(name, item, table, time.monotonic()))

    def _forget_stale(self) -> None:
        """Workers are free again once they end what is not waited for; one that does not is started again."""
        for ref in answers.there(self._stale):
            if ref not in self._stale:  # its worker was lost
                continue
            call = self._stale.answered(ref, time.monotonic())
            try:
                self._reply(call, ref)
            except Left:
                pass
            except Lost as lost:
                self._lose(call, lost)
                self._stale.drop(call.worker)
            except DavRayError as error:  # the item is done, by another worker
                self._log.event("failure_ignored", worker=call.worker, item=call.item.name, cause=str(error))
        for call in self._stale.overdue(time.monotonic(), self._limit_s):
            self._stale.drop(call.worker)
            self._hang(call)

    def _leave_draining(self, schedule: Schedule[Any], running: Calls) -> None:
        """Moves workers off nodes that are to be taken away: at once where they do nothing that is waited for, else
        when they are done, or when the node's time is over: then their item goes out again. The item that such a worker
        has beside it goes to others."""
        drained = self._drains.ask(self._team.actors)
        if drained is not None:
            for name in drained.keys() - self._draining.keys():
                self._log.event("draining", worker=name, node=drained[name].node)
                self._stop(running.of(name)[1:])
            self._draining = drained
        for name, drain in self._draining.items():
            if name in self._team.away or (running.of(name) and not drain.over):
                continue
            for call in running.drop(name):
                leave = functools.partial(schedule.lost, item=call.item)
                self._return(leave, call, "handed_back", f"the time of node {drain.node} was over")
            self._stale.drop(name)
            self._team.restart(name)

    def _collect_all(
        self, schedule: Schedule[Any], running: Calls, refs: Sequence[Any]
    ) -> tuple[list[Done], DavRayError | None]:
        """What these replies bring, and the first failure among them: what others did is kept all the same."""
        done: list[Done] = []
        failure: DavRayError | None = None
        for ref in refs:
            if ref not in running:  # its worker was lost
                continue
            try:
                found = self._collect(schedule, running, ref)
                for one in found:
                    self._stop(running.at(one.item))
                done += found
            except DavRayError as error:
                failure = failure or error
        return done, failure

    def _collect(self, schedule: Schedule[Any], running: Calls, ref: Any) -> list[Done]:
        """The item with its result; nothing where it has none, or had one before."""
        now = time.monotonic()
        call = running.answered(ref, now)
        try:
            reply = self._reply(call, ref)
        except Left:
            schedule.returned(call.worker, now, call.item)
            return []
        except Lost as lost:
            memory = self._lose(call, lost)
            for one in (call, *running.drop(call.worker)):
                leave = functools.partial(schedule.lost, item=one.item, counts=not memory)
                self._return(leave, one, "requeued", f"its workers died, the last one of {lost}")
            return []
        self.busy_s += reply.computed_s
        return [Done(call.item, call.table, reply.result)] if schedule.complete(call.worker, now, call.item) else []

    def _reply(self, call: Call, ref: Any) -> Reply:
        """Raises Lost, Left, and what a data failure raised."""
        try:
            reply = answers.read(ref, call)
        except DataError as error:
            if error.kept is not None:
                self._log.event("quarantined", worker=call.worker, item=call.item.name, file=error.kept)
            raise
        self._team.answered(call.worker, call.item.name, reply)
        return reply

    def _stop(self, calls: Sequence[tuple[Any, Call]]) -> None:
        """Tell workers to leave what nobody waits for. They ask for that about twice a second, or at
        every step."""
        for ref, call in calls:
            if not call.stopped:
                call.stopped = True
                ray.cancel(ref, recursive=False)  # what it asked of rewards is answered all the same
                self._log.event("stopped", worker=call.worker, item=call.item.name)

    def _lose(self, call: Call, lost: Lost) -> bool:
        """Whether the worker died for want of memory: it is to take less then."""
        self._log.event("worker_lost", worker=call.worker, item=call.item.name, cause=str(lost))
        if isinstance(lost.cause, DeviceError):
            self._team.restart(call.worker)
            return False
        return self._team.lost(call.worker)

    def _hang(self, call: Call) -> None:
        seconds = round(time.monotonic() - call.since, 1)
        self._log.event("worker_hung", worker=call.worker, item=call.item.name, seconds=seconds)
        self._team.restart(call.worker)

    def _return(self, leave: Callable[[str], Any], call: Call, event: str, why: str) -> None:
        """The worker gives no result; its item waits again, unless someone else has it."""
        try:
            again = leave(call.worker)
        except Exhausted as exhausted:
            raise RunError("search", f"chunk {call.item.name} was {exhausted}: {why}") from exhausted
        if again is not None:
            self._log.event(event, item=call.item.name)

    @property
    def _limit_s(self) -> float:
        """Longest wait for a reply."""
        return self._team.role.call_timeout_s

    def _check_deadlines(self, schedule: Schedule[Any], running: Calls) -> None:
        for call in running.overdue(time.monotonic(), self._limit_s):
            why = not_in_time("no answer", self._limit_s, "search", "call_timeout_s")
            self._hang(call)
            for one in running.drop(call.worker):
                late = functools.partial(schedule.late, item=one.item)
                beside = functools.partial(schedule.lost, item=one.item, counts=False)
                self._return(late if one is call else beside, one, "requeued", why)

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
