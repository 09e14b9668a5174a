"""Runs a `Schedule` of work items on search actors: pull, retry of what a lost worker had, deadlines.

A worker that is not there yet, or was lost, gets work once it answers: pools may grow and shrink within a round. One
whose node is to be taken away ends its item, while the node stays, and is started again elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray import exceptions

from dav_ray.draining import Drain, Drains
from dav_ray.errors import DavRayError, RunError
from dav_ray.failures import unwrap
from dav_ray.interrupt import check
from dav_ray.places import log_place
from dav_ray.run_files import RunLog
from dav_ray.schedule import Exhausted, Schedule

Item = TypeVar("Item")

ATTEMPTS = 10  # per item, counting only losses of infrastructure
WAIT_S = 0.5
PING_EVERY_S = 1.0


@dataclass
class _Running:
    worker: str
    item: Any
    table: Any  # reference to the first result
    since: float


@dataclass
class _Away:
    """A worker from which an answer is awaited."""

    ping: Any
    asked: float
    since: float
    new: bool  # it was never there
    left: str | None  # the node that it is to leave: an answer from there is from before


class Dispatcher:
    """Keeps the workers busy. A method call returns two results: a table, left in the object store, and its meta."""

    def __init__(
        self, workers: dict[str, Any], run_dir: str, log: RunLog, timeout_s: float, restart_timeout_s: float
    ) -> None:
        self._workers, self._run_dir, self._log = workers, run_dir, log
        self._timeout_s, self._restart_timeout_s = timeout_s, restart_timeout_s
        self._away: dict[str, _Away] = {}
        self._stale: dict[Any, _Running] = {}  # results that are not waited for any more, and who works on them
        self._drains, self._draining = Drains(), dict[str, Drain]()  # workers on nodes that are to be taken away
        self.busy_s = 0.0

    def expect(self, names: Iterable[str]) -> None:
        """The workers were started; these have not answered yet, and get work once they do."""
        for state in (self._away, self._stale, self._draining):
            state.clear()
        for name in names:
            self._await(name, time.monotonic(), new=True)

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

        Raises what a data failure raised; RunError for a worker that never answers or an item that is lost too often.
        """
        schedule = Schedule(items, ATTEMPTS, in_order=in_order)
        running: dict[Any, _Running] = {}
        while not schedule.finished:
            check()
            self._leave_draining(schedule, running)
            self._hand_out(schedule, running, method)
            self._log.live("chunks_outstanding", len(running))
            self._log.live("workers", len(self._workers) - len(self._away), role="search")
            ready, _ = ray.wait(list(running), num_returns=1, timeout=WAIT_S) if running else ([], [])
            if not running:
                time.sleep(WAIT_S)
            for ref in ready:
                self._collect(schedule, running.pop(ref), ref, on_result)
            self._check_deadlines(running)
            self._probe_away()
            tick()
        self._log.live("chunks_outstanding", 0)
        self._stale |= running

    def _hand_out(self, schedule: Schedule[Any], running: dict[Any, _Running], method: str) -> None:
        self._forget_stale()
        entries = (*running.values(), *self._stale.values())
        occupied = {entry.worker for entry in entries} | {*self._away, *self._draining}
        for name, actor in self._workers.items():
            now = time.monotonic()
            if name in occupied or (item := schedule.next(name, now)) is None:
                continue
            table, meta = getattr(actor, method).remote(item)
            if schedule.doubled(name):
                self._log.event("doubled", worker=name, item=item.name)
            running[meta] = _Running(name, item, table, now)

    def _forget_stale(self) -> None:
        """Workers are free again once they end what is not waited for; one that does not is started again."""
        done, _ = ray.wait(list(self._stale), num_returns=len(self._stale), timeout=0) if self._stale else ([], [])
        for ref in done:
            del self._stale[ref]
        for ref, entry in list(self._stale.items()):
            if time.monotonic() - entry.since > self._timeout_s:
                del self._stale[ref]
                self._log.event("worker_stuck", worker=entry.worker, item=entry.item.name)
                ray.kill(self._workers[entry.worker], no_restart=False)
                self._await(entry.worker, time.monotonic(), new=False)

    def _leave_draining(self, schedule: Schedule[Any], running: dict[Any, _Running]) -> None:
        """Moves workers off nodes that are to be taken away: at once where they do nothing that is waited for, else
        when they are done, or when the node's time is over: then their item goes out again."""
        drained = self._drains.ask(self._workers)
        if drained is not None:
            for name in drained.keys() - self._draining.keys():
                self._log.event("draining", worker=name, node=drained[name].node)
            self._draining = drained
        held = {entry.worker: ref for ref, entry in running.items()} if self._draining else {}
        for name, drain in self._draining.items():
            if name in self._away or (name in held and not drain.over):
                continue
            if name in held:
                entry = running.pop(held[name])
                self._return(schedule, entry, "handed_back", f"the deadline of node {drain.node}")
            self._stale = {ref: entry for ref, entry in self._stale.items() if entry.worker != name}
            ray.kill(self._workers[name], no_restart=False)  # Ray places it where nothing drains
            self._await(name, time.monotonic(), new=False, left=drain.node)

    def _collect(self, schedule: Schedule[Any], entry: _Running, ref: Any, on_result: Callable[..., None]) -> None:
        try:
            meta = ray.get(ref)
        except (exceptions.RayActorError, exceptions.ObjectLostError, exceptions.OutOfMemoryError) as error:
            self._lose(schedule, entry, error)
            return
        except exceptions.RayTaskError as error:
            raise _data_failure(entry, unwrap(error)) from error
        now = time.monotonic()
        self.busy_s += now - entry.since
        if schedule.complete(entry.worker, now):
            on_result(entry.item, entry.table, meta)

    def _lose(self, schedule: Schedule[Any], entry: _Running, error: BaseException) -> None:
        self._log.event("worker_lost", worker=entry.worker, item=entry.item.name, cause=type(error).__name__)
        self._return(schedule, entry, "requeued", "its workers")
        self._await(entry.worker, time.monotonic(), new=False)

    def _return(self, schedule: Schedule[Any], entry: _Running, event: str, by: str) -> None:
        """The worker gives no result; its item waits again, unless someone else has it."""
        try:
            again = schedule.lost(entry.worker)
        except Exhausted as exhausted:
            raise RunError("search", f"chunk {entry.item.name} was {exhausted}, the last time by {by}") from exhausted
        if again is not None:
            self._log.event(event, item=entry.item.name)

    def _await(self, name: str, since: float, *, new: bool, left: str | None = None) -> None:
        ping = self._workers[name].ready.remote(self._run_dir)
        self._away[name] = _Away(ping, time.monotonic(), since, new, left)

    def _probe_away(self) -> None:
        """Workers that found a place, or that Ray restarted, are there when they answer."""
        now = time.monotonic()
        waited = now - max((away.since for away in self._away.values()), default=now)  # since the last one went
        if len(self._away) == len(self._workers) and waited > self._restart_timeout_s:
            raise RunError("search", f"no worker is left; none of {len(self._away)} came back in {waited:.0f} s")
        for name, away in list(self._away.items()):
            if not ray.wait([away.ping], timeout=0)[0]:
                continue
            try:
                node: Any = ray.get(away.ping)
            except exceptions.RayError:
                node = away.left
            if node == away.left:
                if now - away.asked > PING_EVERY_S:
                    self._await(name, away.since, new=away.new, left=away.left)
                continue
            del self._away[name]
            self._draining.pop(name, None)
            self._log.event("worker_joined" if away.new else "worker_back", worker=name)
            log_place(self._log, "search", name, node)

    def _check_deadlines(self, running: dict[Any, _Running]) -> None:
        for entry in running.values():
            if time.monotonic() - entry.since > self._timeout_s:
                raise RunError(
                    "search",
                    f"{entry.worker} gave no answer for chunk {entry.item.name} in {self._timeout_s:.0f} s "
                    "(roles.search.call_timeout_s)",
                )


def _data_failure(entry: _Running, cause: BaseException) -> DavRayError:
    if isinstance(cause, DavRayError):
        return cause
    return RunError("search", f"chunk {entry.item.name} on {entry.worker}: {type(cause).__name__}: {cause}")
