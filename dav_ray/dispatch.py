"""Runs a `Schedule` of work items on search actors: pull, retry of what a lost worker had, deadlines.

A worker that is not there yet, or was lost, gets work once it answers: pools may grow and shrink within a round. One
that gives no answer in time is started again, and so is one whose node is to be taken away: it ends its item, while the
node stays. Losses of infrastructure are made good; a failure of data ends the run.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray import exceptions

from dav_ray.draining import Drain, Drains
from dav_ray.errors import DataError, DavRayError, DeviceError, RunError
from dav_ray.failures import unwrap
from dav_ray.interrupt import check
from dav_ray.lives import Answer, Life
from dav_ray.run_files import RunLog
from dav_ray.schedule import Exhausted, Schedule
from dav_ray.workers import ANSWER_S, Workers

Item = TypeVar("Item")

ATTEMPTS = 10  # per item, counting only losses of infrastructure
DELAYS = 3  # per item: workers that gave no answer in time
WAIT_S = 0.5


@dataclass
class _Running:
    worker: str
    item: Any
    table: Any  # reference to the first result
    since: float


class Dispatcher:
    """Keeps the workers busy. A method call returns two results: a table, left in the object store, and an `Answer`.

    timeout_s: longest wait for one; restart_timeout_s: for a worker that starts. renew: as in `Workers`."""

    def __init__(
        self,
        workers: dict[str, Any],
        run_dir: str,
        log: RunLog,
        timeout_s: float,
        restart_timeout_s: float,
        renew: Callable[[str], Any],
    ) -> None:
        self._workers = Workers(workers, run_dir, log, restart_timeout_s, renew)
        self._log, self._timeout_s = log, timeout_s
        self._stale: dict[Any, _Running] = {}  # results that are not waited for any more, and who works on them
        self._drains, self._draining = Drains(), dict[str, Drain]()  # workers on nodes that are to be taken away
        self.busy_s = 0.0

    def expect(self, names: Iterable[str], lives: Mapping[str, Life]) -> None:
        """The workers were started; these names have not answered yet, and get work once they do. lives: of the
        others."""
        self._stale.clear()
        self._draining.clear()
        self._workers.expect(names, lives)

    def run(
        self,
        method: str,
        items: Sequence[Item],
        on_result: Callable[[Item, Any, Any], None],
        tick: Callable[[], None] = lambda: None,
        *,
        in_order: bool = False,
    ) -> None:
        """Calls `method` of some worker with every item. on_result(item, table reference, meta) in order of arrival;
        in_order: whoever consumes them waits for the first open item.

        Raises what a data failure raised; RunError where no worker is left, or an item is lost or late too often.
        """
        schedule = Schedule(items, ATTEMPTS, DELAYS, in_order=in_order)
        running: dict[Any, _Running] = {}
        while not schedule.finished:
            check()
            self._leave_draining(schedule, running)
            self._hand_out(schedule, running, method)
            self._log.live("chunks_outstanding", len(running))
            self._log.live("workers", self._workers.there, role="search")
            ready, _ = ray.wait(list(running), num_returns=1, timeout=WAIT_S) if running else ([], [])
            if not running:
                time.sleep(WAIT_S)
            for ref in ready:
                self._collect(schedule, running.pop(ref), ref, on_result)
            self._check_deadlines(schedule, running)
            for name in self._workers.probe():
                self._draining.pop(name, None)
            tick()
        self._log.live("chunks_outstanding", 0)
        self._stale |= running

    def _hand_out(self, schedule: Schedule[Any], running: dict[Any, _Running], method: str) -> None:
        self._forget_stale()
        entries = (*running.values(), *self._stale.values())
        occupied = {entry.worker for entry in entries} | {*self._workers.away, *self._draining}
        for name, actor in self._workers.handles.items():
            now = time.monotonic()
            if name in occupied or (item := schedule.next(name, now)) is None:
                continue
            table, answer = getattr(actor, method).remote(item, self._workers.halvings(name))
            if schedule.doubled(name):
                self._log.event("doubled", worker=name, item=item.name)
            running[answer] = _Running(name, item, table, now)

    def _forget_stale(self) -> None:
        """Workers are free again once they end what is not waited for; one that does not is started again."""
        done, _ = ray.wait(list(self._stale), num_returns=len(self._stale), timeout=0) if self._stale else ([], [])
        for ref in done:
            entry = self._stale.pop(ref)
            try:
                self._answer(entry, ref)
            except _Lost as lost:
                self._lose(entry, lost)
            except DavRayError as error:  # the item is done, by another worker
                self._log.event("failure_ignored", worker=entry.worker, item=entry.item.name, cause=str(error))
        for ref, entry in list(self._stale.items()):
            if time.monotonic() - entry.since > self._timeout_s:
                del self._stale[ref]
                self._hang(entry)

    def _leave_draining(self, schedule: Schedule[Any], running: dict[Any, _Running]) -> None:
        """Moves workers off nodes that are to be taken away: at once where they do nothing that is waited for, else
        when they are done, or when the node's time is over: then their item goes out again."""
        drained = self._drains.ask(self._workers.handles)
        if drained is not None:
            for name in drained.keys() - self._draining.keys():
                self._log.event("draining", worker=name, node=drained[name].node)
            self._draining = drained
        held = {entry.worker: ref for ref, entry in running.items()} if self._draining else {}
        for name, drain in self._draining.items():
            if name in self._workers.away or (name in held and not drain.over):
                continue
            if name in held:
                entry = running.pop(held[name])
                self._return(schedule.lost, entry, "handed_back", f"the time of node {drain.node} was over")
            self._stale = {ref: entry for ref, entry in self._stale.items() if entry.worker != name}
            self._workers.restart(name)

    def _collect(self, schedule: Schedule[Any], entry: _Running, ref: Any, on_result: Callable[..., None]) -> None:
        try:
            answer = self._answer(entry, ref)
        except _Lost as lost:
            memory = self._lose(entry, lost)
            leave = functools.partial(schedule.lost, counts=not memory)
            self._return(leave, entry, "requeued", f"its workers died, the last one of {lost}")
            return
        now = time.monotonic()
        self.busy_s += now - entry.since
        if schedule.complete(entry.worker, now):
            on_result(entry.item, entry.table, answer.meta)

    def _answer(self, entry: _Running, ref: Any) -> Answer:
        """_Lost where the worker was; else what a data failure raised."""
        try:
            answer: Answer = ray.get(ref, timeout=ANSWER_S)
        except exceptions.RayTaskError as error:
            cause = unwrap(error)
            if isinstance(cause, exceptions.RayError | DeviceError):
                raise _Lost(cause) from error
            if isinstance(cause, DataError) and cause.kept is not None:
                self._log.event("quarantined", worker=entry.worker, item=entry.item.name, file=cause.kept)
            raise _data_failure(entry, cause) from error
        except exceptions.RayError as error:
            raise _Lost(error) from error
        self._workers.answered(entry.worker, entry.item.name, answer)
        return answer

    def _lose(self, entry: _Running, lost: _Lost) -> bool:
        """Whether the worker died for want of memory: it is to take less then."""
        self._log.event("worker_lost", worker=entry.worker, item=entry.item.name, cause=str(lost))
        if isinstance(lost.cause, DeviceError):
            self._workers.restart(entry.worker)
            return False
        return self._workers.lost(entry.worker)

    def _hang(self, entry: _Running) -> None:
        seconds = round(time.monotonic() - entry.since, 1)
        self._log.event("worker_hung", worker=entry.worker, item=entry.item.name, seconds=seconds)
        self._workers.restart(entry.worker)

    def _return(self, leave: Callable[[str], Any], entry: _Running, event: str, why: str) -> None:
        """The worker gives no result; its item waits again, unless someone else has it."""
        try:
            again = leave(entry.worker)
        except Exhausted as exhausted:
            raise RunError("search", f"chunk {entry.item.name} was {exhausted}: {why}") from exhausted
        if again is not None:
            self._log.event(event, item=entry.item.name)

    def _check_deadlines(self, schedule: Schedule[Any], running: dict[Any, _Running]) -> None:
        for ref, entry in list(running.items()):
            if time.monotonic() - entry.since > self._timeout_s:
                del running[ref]
                self._hang(entry)
                why = f"no answer in {self._timeout_s:g} s (roles.search.call_timeout_s)"
                self._return(schedule.late, entry, "requeued", why)


class _Lost(Exception):
    """No result, through no fault of the data."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause) if isinstance(cause, DeviceError) else type(cause).__name__)
        self.cause = cause


def _data_failure(entry: _Running, cause: BaseException) -> DavRayError:
    if isinstance(cause, DavRayError):
        return cause
    return RunError("search", f"chunk {entry.item.name} on {entry.worker}: {type(cause).__name__}: {cause}")
