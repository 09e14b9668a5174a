"""The replicas of one reward as Ray actors: they are started, admitted, called, watched and ended as `Pool` says.

Part of the fleet's process; all of it runs in one event loop. Losses of infrastructure are made good here, what a
reward answers or raises is passed on.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import exceptions

from dav_ray.errors import DavRayError, RewardTimeout, RunError, UserError
from dav_ray.rewards.base import TRACE, Scored
from dav_ray.rewards.golden import Golden, difference, encode, golden_path, tolerance_on, usable
from dav_ray.run_dir.storage.interface import Storage
from dav_ray.run_dir.tracebacks import as_field
from dav_ray.runtime.cluster.deadlines import not_in_time
from dav_ray.runtime.cluster.failures import died, start_failure, unwrap
from dav_ray.runtime.reward.batching import Request
from dav_ray.runtime.reward.replica import RewardActor
from dav_ray.runtime.reward.scaling import Pool
from dav_ray.runtime.reward.spec import PoolState, RewardSpec

CALLS = 3  # of a request that no replica answers in time
LOSSES = 10  # replicas that may die with one request
FAILED_STARTS = 3  # in a row, before a reward of which no replica is there is given up
WATCH_S = 5.0  # between questions whether an idle replica is still there

Tell = Callable[..., None]  # (event, fields)


@dataclass
class _Replica:
    handle: Any
    node: str = ""
    hardware: str = ""


@dataclass(frozen=True)
class Asked:
    """One request of a search worker."""

    samples: Any  # an array, or a reference to one
    conditions: Sequence[str]
    grad: bool
    answer: asyncio.Future[Any]


class Crew:
    """`failure`: why this reward will never be scored again."""

    def __init__(self, spec: RewardSpec, run_dir: str, storage: Storage, golden: Golden | None, tell: Tell) -> None:
        self.spec, self.pool = spec, Pool(spec.role, time.monotonic(), spec.linger_s)
        self.failure: DavRayError | None = None
        self._run_dir, self._storage, self._golden, self._tell = run_dir, storage, golden, tell
        self._replicas: dict[str, _Replica] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._checking: set[str] = set()
        self._started = 0
        self._merged = False
        self._refusal = ""

    def state(self) -> PoolState:
        busy_s, admitted_s = self.pool.seconds(time.monotonic())
        starting = len(self.pool.names("starting", "standing"))
        return PoolState(self.spec.label, self.pool.admitted, starting, len(self.pool.queue), busy_s, admitted_s)

    def ask(self, samples: Any, num: int, alike: Any, conditions: Sequence[str], grad: bool) -> asyncio.Future[Any]:
        """(Scored, reference to its gradients) with `grad`, else Scored; None where the samples are lost. Raises
        DavRayError."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.pool.arrive(Request(num, alike, time.monotonic(), Asked(samples, conditions, grad, answer)))
        self.pump()
        return answer

    def pump(self) -> None:
        """Do what is to be done now: after every change, and every now and then."""
        now = time.monotonic()
        if self.failure is None and self.pool.hopeless:
            self.failure = RunError("reward", self._refusal)
        if self.failure is not None:
            self._give_up(self.failure, now)
            return
        for _ in range(self.pool.to_start(now)):
            name = f"reward-{self.spec.number}-{self._started}"
            self._started += 1
            self.pool.start(name, now)
            self._spawn(self._bring_up(name))
        self._admit(now)
        for name, requests in self.pool.assign(now):
            self._spawn(self._call(name, self._replicas[name], requests))
        for name in self.pool.to_end(now):
            self._end(name)
            self._event("released", role="reward", replica=name)
        self._deadlines(now)

    def _give_up(self, failure: DavRayError, now: float) -> None:
        for name in list(self._replicas):
            self._end(name)  # what it had is in the queue then
        for request in self.pool.queue.remove(now):
            _fail(request, failure)

    # -- replicas come --------------------------------------------------------------------------------------------

    async def _bring_up(self, name: str) -> None:
        spec = self.spec
        if name not in self.pool.names("starting"):
            return  # released at once
        # a lost replica is followed by another actor: none that Ray restarted serves before it is admitted
        options = {**spec.options, "name": name, "max_restarts": 0}
        try:
            actor: Any = ray.remote(RewardActor).options(**options)
            mine = _Replica(actor.remote(spec.kind, dict(spec.args), spec.role.threads, spec.role.batch, spec.modules))
            self._replicas[name] = mine
            mine.node, mine.hardware = await asyncio.gather(
                mine.handle.ready.remote(self._run_dir), mine.handle.hardware.remote()
            )
        except exceptions.ActorAlreadyExistsError:  # the fleet was restarted, and its old replicas are still ending
            self.pool.fail(name, time.monotonic())
            return
        except exceptions.RayError as error:
            if name in self._replicas:
                self._not_up(name, error)
            return
        self._tell("actor_placed", role="reward", name=name, node=mine.node)
        if name in self._replicas:
            self.pool.stand(name, time.monotonic())
            self.pump()

    def _not_up(self, name: str, error: exceptions.RayError) -> None:
        self._end(name)
        self.pool.fail(name, time.monotonic())
        failure = start_failure("reward", name, error)
        self._event("replica_failed", replica=name, cause=str(failure), **as_field(failure))
        again = self.pool.served or ((self.pool.stood or died(error)) and not isinstance(failure, UserError))
        if not again or (self.pool.failures >= FAILED_STARTS and not self.pool.admitted):
            self.failure = failure
        self.pump()

    def _admit(self, now: float) -> None:
        """Without golden scores one replica serves, and gives them; with them each is asked for its own first."""
        for name in self.pool.names("standing"):
            if self._golden is not None and name not in self._checking:
                self._checking.add(name)
                self._spawn(self._check(name, self._replicas[name], self._golden))
            elif self._golden is None and not self.pool.admitted:
                self._serve(name, now)

    def _serve(self, name: str, now: float) -> None:
        self.pool.admit(name, now)
        self._spawn(self._watch(name))

    async def _check(self, name: str, mine: _Replica, golden: Golden) -> None:
        """Admit the replica if it reproduces the golden scores; else it is ended for good."""
        scored = await self._answer(name, mine.handle.reproduce.remote(golden.samples, golden.conditions, golden.grad))
        self._checking.discard(name)
        if scored is None or name not in self._replicas:
            return
        tolerance = tolerance_on(mine.hardware, self.spec.tolerance)
        worst = difference(golden, scored.values, tolerance)
        if worst is None:
            self._serve(name, time.monotonic())
        else:
            self._refuse(name, mine, scored.error, tolerance, *worst)
        self.pump()

    def _refuse(
        self, name: str, mine: _Replica, error: str | None, tolerance: float, row: int, value: float, wanted: float
    ) -> None:
        self._refusal = (
            f"{self.spec.label}: no replica reproduces the golden scores; the last one, on {mine.hardware}, gave "
            f"{error or value} for sample {row} where {wanted} is golden (reward.tolerance {tolerance:g})"
        )
        values = {"sample": row, "value": error or value, "golden": wanted, "tolerance": tolerance}
        self._event("replica_refused", replica=name, node=mine.node, hardware=mine.hardware, **values)
        self._end(name)
        self.pool.refuse(name, time.monotonic())

    # -- calls ----------------------------------------------------------------------------------------------------

    async def _call(self, name: str, mine: _Replica, requests: list[Request]) -> None:
        asked: list[Asked] = [request.content for request in requests]
        grad = asked[0].grad
        if len(asked) > 1 and not self._merged:
            self._merged = True
            self._event("requests_merged", requests=len(asked), samples=sum(request.num for request in requests))
        method = mine.handle.score.options(num_returns=1 + len(asked) if grad else 1)
        refs = method.remote([one.samples for one in asked], [one.conditions for one in asked], grad)
        found = await self._answer(name, refs[0] if grad else refs)
        if found is None:
            return
        if isinstance(found, Scored):
            found = [found] * len(asked)
        for i, (one, scored) in enumerate(zip(asked, found, strict=True)):
            if not one.answer.done():
                one.answer.set_result((scored, refs[1 + i]) if grad and scored is not None else scored)
        if self._golden is None:
            await self._make_golden(name, mine, asked[0])
        if name in self._replicas:
            self.pool.finish(name, time.monotonic())
        self.pump()

    async def _answer(self, name: str, ref: Any) -> Any:
        """What the replica answers; the error in words, as Scored, where its code raised; None where it gave no answer
        and is ended."""
        try:
            return await asyncio.wait_for(ref, self.spec.role.call_timeout_s)
        except exceptions.RayTaskError as error:
            cause = unwrap(error)
            return Scored(error=f"{type(cause).__name__}: {cause}", trace=str(error)[-TRACE:])
        except TimeoutError:
            if name in self._replicas:
                self._event("replica_stuck", replica=name, seconds=self.spec.role.call_timeout_s)
                self._lose(name, stuck=1)
        except exceptions.RayError as error:
            if name in self._replicas:
                self._event("replica_lost", replica=name, cause=type(error).__name__)
                self._lose(name, lost=1)
        return None

    def _lose(self, name: str, stuck: int = 0, lost: int = 0) -> None:
        """End the replica; what it had goes to another one, if it has not cost too much already."""
        self._end(name, requeue=(stuck, lost))
        self.pump()

    async def _make_golden(self, name: str, mine: _Replica, first: Asked) -> None:
        made = await self._answer(name, mine.handle.golden.remote(first.samples, first.conditions, first.grad))
        if made is None or isinstance(made, Scored) or self._golden is not None:
            return
        samples, conditions, scored = made
        if scored.error is None and usable(scored.values, len(conditions)):
            golden = Golden(samples, conditions, scored.values, first.grad)
            path = golden_path(self.spec.label)
            await asyncio.to_thread(self._storage.write, path, encode(golden))
            self._golden = golden
            self._event("golden_stored", path=path, samples=len(conditions), hardware=mine.hardware)

    def _deadlines(self, now: float) -> None:
        limit = self.spec.role.start_timeout_s
        for name in self.pool.late(now):
            self._event("replica_late", replica=name, seconds=limit)
        for request in self.pool.overdue(now):
            words = not_in_time(f"{self.spec.label}: no replica found a place", limit, "reward")
            _fail(request, RewardTimeout("reward", words))

    # -- replicas go ----------------------------------------------------------------------------------------------

    def _end(self, name: str, requeue: tuple[int, int] = (0, 0)) -> None:
        mine = self._replicas.pop(name, None)
        if mine is not None:
            ray.kill(mine.handle)
        left = [request for request in self.pool.drop(name, time.monotonic()) if not request.content.answer.done()]
        self.pool.again(request for request in left if not self._spent(request, *requeue))

    def _spent(self, request: Request, stuck: int, lost: int) -> bool:
        """Count what happened to a request; fail it if that was too much."""
        request.stuck, request.lost = request.stuck + stuck, request.lost + lost
        if request.stuck >= CALLS:
            what, limit = f"{self.spec.label}: {request.stuck} replicas gave no answer", self.spec.role.call_timeout_s
            _fail(request, RewardTimeout("reward", not_in_time(what, limit, "reward", "call_timeout_s")))
        elif request.lost >= LOSSES:
            _fail(request, RunError("reward", f"{self.spec.label}: {request.lost} replicas died with one call"))
        return request.content.answer.done()

    async def _watch(self, name: str) -> None:
        """Notice when an idle replica dies."""
        while name in self._replicas:
            await asyncio.sleep(WATCH_S)
            if name in self.pool.names("free"):
                await self._answer(name, self._replicas[name].handle.ping.remote())

    def _event(self, event: str, **fields: Any) -> None:
        self._tell(event, reward=self.spec.label, **fields)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(self._guard(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        """Nobody awaits these tasks: what they raise ends the reward, lest its callers wait for ever."""
        try:
            await work
        except Exception as error:
            words = f"{self.spec.label}: {type(error).__name__}: {error}"
            self.failure = error if isinstance(error, DavRayError) else RunError("reward", words)
            if isinstance(self.failure, RunError) and self.failure.trace is None:
                self.failure.trace = traceback.format_exc()[-TRACE:]
            self.pump()


def _fail(request: Request, error: DavRayError) -> None:
    if not request.content.answer.done():
        request.content.answer.set_exception(error)
