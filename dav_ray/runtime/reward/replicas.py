"""The replicas of one reward as Ray actors: they are started, admitted, called, watched and ended as `Pool` says.

Part of the fleet's process; all of it runs in one event loop. Losses of infrastructure are made good here, what a
reward answers or raises is passed on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import traceback
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import exceptions

from dav_ray.errors import DavRayError, RewardTimeout, RunError, UserError
from dav_ray.rewards.base import TRACE, Scored, failed
from dav_ray.rewards.faults.patience import Patience
from dav_ray.rewards.golden import Golden
from dav_ray.run_dir.storage.interface import Storage
from dav_ray.run_dir.tracebacks import as_field
from dav_ray.runtime.cluster.deadlines import not_in_time
from dav_ray.runtime.cluster.failures import died, start_failure, unwrap
from dav_ray.runtime.cluster.ray_private import ended_for_memory
from dav_ray.runtime.reward.answers import Answers, Asked, breakage, most
from dav_ray.runtime.reward.batching import ANYWHERE, Request
from dav_ray.runtime.reward.golden_scores import GoldenScores
from dav_ray.runtime.reward.replica import Facts, Replied, RewardActor
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
    facts: Facts = Facts()
    gap: float = 0.0  # between its scores and golden ones, where it serves all the same


class Crew:
    """`failure`: why this reward will never be scored again."""

    def __init__(self, spec: RewardSpec, run_dir: str, storage: Storage, golden: Golden | None, tell: Tell) -> None:
        self.spec, self.pool = spec, Pool(spec.role, time.monotonic(), spec.linger_s)
        self.failure: DavRayError | None = None
        self.wants: str | None = None  # how it wants images, once a replica stood
        self._run_dir, self._tell = run_dir, tell
        self._golden = GoldenScores(spec, storage, golden)
        self._answers = Answers(spec.label, spec.role.retry_s, self._event)
        self._replicas: dict[str, _Replica] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._checking: set[str] = set()
        self._started = self._unchecked = 0
        self._merged = False
        self._refusal = ""

    def state(self) -> PoolState:
        busy_s, admitted_s = self.pool.seconds(time.monotonic())
        starting = len(self.pool.names("starting", "standing"))
        gap = max((mine.gap for mine in self._replicas.values()), default=0.0)
        return PoolState(self.spec.label, self.pool.admitted, starting, len(self.pool.queue), busy_s, admitted_s, gap)

    def ask(
        self, samples: Sequence[tuple[Any, int]], num: int, alike: Any, conditions: Sequence[str], grad: bool
    ) -> asyncio.Future[Any]:
        """(Scored, references to its gradients in order) with `grad`, else Scored; None where the samples are lost.
        Raises DavRayError."""
        asked = Asked(samples, conditions, grad)
        self.pool.arrive(Request(num, alike, time.monotonic(), asked))
        self.pump()
        return asked.answer

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
        self.pool.queue.forget(lambda request: request.content.over)
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
            request.content.fail(failure)

    # -- replicas come --------------------------------------------------------------------------------------------

    async def _bring_up(self, name: str) -> None:
        spec = self.spec
        if name not in self.pool.names("starting"):
            return  # released at once
        # a lost replica is followed by another actor: none that Ray restarted serves before it is admitted
        options = {**spec.options, "name": name, "max_restarts": 0}
        try:
            actor: Any = ray.remote(RewardActor).options(**options)
            mine = _Replica(actor.remote(*spec.built))
            self._replicas[name] = mine
            mine.node, mine.facts = await asyncio.gather(
                mine.handle.ready.remote(self._run_dir), mine.handle.facts.remote()
            )
        except exceptions.ActorAlreadyExistsError:  # the fleet was restarted, and its old replicas are still ending
            self.pool.fail(name, time.monotonic())
            return
        except exceptions.RayError as error:
            if name in self._replicas:
                self._not_up(name, error)
            return
        self.wants = mine.facts.wants
        if mine.facts.by_row:
            self.pool.queue.unit = ANYWHERE
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
            golden = self._golden.wanted
            if golden is not None and name not in self._checking:
                self._checking.add(name)
                self._spawn(self._check(name, self._replicas[name], golden))
            elif golden is None and (self._golden.off or not self.pool.admitted):
                self._serve(name, now)

    def _serve(self, name: str, now: float) -> None:
        self._unchecked = 0
        self.pool.admit(name, now)
        self._spawn(self._watch(name))

    async def _check(self, name: str, mine: _Replica, golden: Golden) -> None:
        """Admit the replica if it reproduces the golden scores; else it is ended for good."""
        patience, pause_s = Patience(self.spec.role.retry_s), 0.0
        scored: Scored | None = None
        while pause_s is not None:
            await asyncio.sleep(pause_s)
            rows = golden.samples, golden.conditions, golden.grad
            scored = await self._answer(name, mine, mine.handle.reproduce.remote(*rows))
            if scored is None or name not in self._replicas:
                self._checking.discard(name)
                return
            pause_s = self._answers.pause(name, patience, scored) if scored.fault == "transient" else None
        self._checking.discard(name)
        assert scored is not None
        if scored.fault is not None:
            self._not_checked(name, scored)
            return
        verdict = self._golden.verdict(golden, mine.facts, scored)
        if verdict.differs:
            event = "golden_differs" if verdict.admitted else "replica_refused"
            self._event(event, replica=name, node=mine.node, **verdict.differs)
        if verdict.admitted:
            mine.gap = verdict.gap
            self._serve(name, time.monotonic())
        else:
            self._refusal = verdict.words
            self._end(name)
            self.pool.refuse(name, time.monotonic())
        self.pump()

    def _not_checked(self, name: str, scored: Scored) -> None:
        """The replica could not say whether it reproduces the golden scores: another one is tried."""
        self._unchecked += 1
        self._event("replica_replaced", replica=name, node=self._replicas[name].node, cause=scored.error)
        self._end(name)
        self.pool.fail(name, time.monotonic())
        if not self.pool.admitted and (scored.fault == "transient" or self._unchecked >= FAILED_STARTS):
            self.failure = RunError("reward", f"{self.spec.label}: golden scores could not be asked: {scored.error}")
        self.pump()

    # -- calls ----------------------------------------------------------------------------------------------------

    async def _call(self, name: str, mine: _Replica, requests: list[Request]) -> None:
        grad = requests[0].content.grad
        if len(requests) > 1 and not self._merged:
            self._merged = True
            self._event("requests_merged", requests=len(requests), samples=sum(request.num for request in requests))
        parts = [(request.start, request.num) for request in requests]
        spans = [request.content.spans(*part) for request, part in zip(requests, parts, strict=True)]
        texts = [request.content.conditions(*part) for request, part in zip(requests, parts, strict=True)]
        method = mine.handle.score.options(num_returns=1 + len(requests) if grad else 1)
        refs = method.remote(spans, texts, grad, most(requests))
        found = await self._answer(name, mine, refs[0] if grad else refs)
        if found is None:
            return
        replied = Replied([found] * len(requests), []) if isinstance(found, Scored) else found
        for event, fields in replied.events:
            self._event(event, replica=name, **fields)
        again: list[Request] = []
        for i, (request, scored) in enumerate(zip(requests, replied.scored, strict=True)):
            again += self._answers.settle(name, request, scored, refs[1 + i] if grad else None)
        if self._golden.missing and replied.scored[0] is not None and replied.scored[0].error is None:
            await self._make_golden(name, mine, spans[0], texts[0], grad)
        if name in self._replicas:
            self.pool.finish(name, time.monotonic())
        if name in self._replicas and (cause := breakage(replied.scored)):
            self._event("replica_replaced", replica=name, node=mine.node, cause=cause)
            self._end(name)
        self.pool.again(again)
        self.pump()

    async def _answer(self, name: str, mine: _Replica, ref: Any) -> Any:
        """What the replica answers; the error in words, as Scored, where its code raised; None where it gave no answer
        and is ended."""
        try:
            return await asyncio.wait_for(ref, self.spec.role.call_timeout_s)
        except exceptions.RayTaskError as error:
            return failed(unwrap(error), str(error))
        except TimeoutError:
            if name in self._replicas:
                self._event("replica_stuck", replica=name, seconds=self.spec.role.call_timeout_s)
                self._lose(name, stuck=1)
        except exceptions.RayError as error:
            memory = await asyncio.to_thread(_ended_for_memory, mine.facts.worker)
            if name in self._replicas:
                cause = "Ray ended it, as its node was running out of memory" if memory else type(error).__name__
                self._event("replica_lost", replica=name, cause=cause)
                self._lose(name, lost=1, memory=memory)
        return None

    def _lose(self, name: str, stuck: int = 0, lost: int = 0, memory: bool = False) -> None:
        """End the replica; what it had goes to another one, if it has not cost too much already."""
        self._end(name, requeue=(stuck, lost, int(memory)))
        self.pump()

    async def _make_golden(self, name: str, mine: _Replica, samples: Any, texts: Sequence[str], grad: bool) -> None:
        made = await self._answer(name, mine, mine.handle.golden.remote(samples, texts, grad))
        if made is None or isinstance(made, Scored):
            return
        if kept := await self._golden.keep(made, grad, mine.facts):
            self._event("golden_stored", **kept)

    def _deadlines(self, now: float) -> None:
        limit = self.spec.role.start_timeout_s
        for name in self.pool.late(now):
            self._event("replica_late", replica=name, seconds=limit)
        for request in self.pool.overdue(now):
            words = not_in_time(f"{self.spec.label}: no replica found a place", limit, "reward")
            request.content.fail(RewardTimeout("reward", words))

    # -- replicas go ----------------------------------------------------------------------------------------------

    def _end(self, name: str, requeue: tuple[int, int, int] = (0, 0, 0)) -> None:
        mine = self._replicas.pop(name, None)
        if mine is not None:
            ray.kill(mine.handle)
        held = self.pool.drop(name, time.monotonic())
        left = [request for request in held if not request.done and not request.content.over]
        self.pool.again(request for request in left if not self._spent(request, *requeue))

    def _spent(self, request: Request, stuck: int, lost: int, memory: int) -> bool:
        """Count what happened to a request; fail it if that was too much."""
        request.stuck, request.lost = request.stuck + stuck, request.lost + lost
        request.halvings += memory
        if request.stuck >= CALLS:
            what, limit = f"{self.spec.label}: {request.stuck} replicas gave no answer", self.spec.role.call_timeout_s
            request.content.fail(RewardTimeout("reward", not_in_time(what, limit, "reward", "call_timeout_s")))
        elif request.lost >= LOSSES:
            request.content.fail(RunError("reward", f"{self.spec.label}: {request.lost} replicas died with one call"))
        return request.content.over

    async def _watch(self, name: str) -> None:
        """Notice when an idle replica dies."""
        while name in self._replicas:
            await asyncio.sleep(WATCH_S)
            if name in self.pool.names("free"):
                await self._answer(name, self._replicas[name], self._replicas[name].handle.ping.remote())

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


def _ended_for_memory(worker: str) -> bool:
    with contextlib.suppress(Exception):  # whatever the cluster's tables raise: it is only told why
        return bool(worker) and ended_for_memory(worker)
    return False
