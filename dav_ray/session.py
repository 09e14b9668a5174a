"""The run's actors on a Ray cluster: connecting, placing them with a deadline, taking them down."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dav_ray.config import Config
from dav_ray.errors import DavRayError, RunError, UserError
from dav_ray.interrupt import check
from dav_ray.mstep.mailbox import Mailbox
from dav_ray.mstep.train import Trainer, TrainSpec
from dav_ray.placement import actor_options, with_cwd
from dav_ray.plan import local_cpus
from dav_ray.rewards.actor import RewardActor
from dav_ray.search.actor import SearchActor, WorkerSpec

MAILBOX = "mailbox"
POLL_S = 0.5


@dataclass
class Session:
    """What a run holds on the cluster."""

    config: Config
    run_dir: str
    namespace: str
    mailbox: Any
    workers: dict[str, Any] = field(default_factory=dict)  # search actors by name
    rewards: dict[str, Any] = field(default_factory=dict)
    trainer: Trainer | None = None
    away: tuple[str, ...] = ()  # search actors that have not found a place yet

    def start_trainer(self, scratch: str) -> None:
        self.trainer = Trainer(TrainSpec(self.config, self.run_dir, self.namespace, MAILBOX), scratch)

    def stop(self) -> None:
        """End the trainer, then the actors. What they had done is in storage."""
        with contextlib.suppress(exceptions.RayError):
            ray.get(self.mailbox.stop.remote(), timeout=10)
        if self.trainer is not None:
            self.trainer.join(20)
        for actor in (*self.workers.values(), *self.rewards.values(), self.mailbox):
            ray.kill(actor)


@contextlib.contextmanager
def connected(address: str, config: Config) -> Iterator[None]:
    """A connection to Ray: an embedded one for `local` (ended afterwards), else the cluster at `address`."""
    os.environ.setdefault("RAY_SCHEDULER_EVENTS", "0")
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    # a worker that was given no GPU must not see any
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
    }
    if address == "local":
        cores = os.cpu_count() or 1
        options |= {
            "address": "local",
            "num_cpus": local_cpus(config, cores),
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
        }
        options["runtime_env"] = {"env_vars": {"PYTHONPATH": with_cwd()}}
    else:
        options |= {"address": address}
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError, exceptions.RayError) as error:
        raise UserError(
            f"--address {address}: {str(error).splitlines()[0]}; allowed: auto, local or HOST:PORT"
        ) from error
    _quiet_data()
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def session(config: Config, run_dir: str, name: str, *, train: bool = True) -> Iterator[Session]:
    """Start every role and wait for search and reward; the trainer comes up meanwhile. RunError names a role that never
    came up."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox = (
        ray.remote(Mailbox)
        .options(name=MAILBOX, namespace=name, num_cpus=0, scheduling_strategy=here, max_concurrency=100)
        .remote()
    )
    started = Session(config, run_dir, name, mailbox)
    with tempfile.TemporaryDirectory(prefix="dav_ray-", ignore_cleanup_errors=True) as scratch:
        try:
            if train:
                started.start_trainer(scratch)
            pools = _start_rewards(started)
            _start_search(started, pools)
            _await_ready("reward", started.rewards, run_dir, config.roles.reward.start_timeout_s, _pythons(config))
            role = config.roles.search
            started.away = _await_ready("search", started.workers, run_dir, role.start_timeout_s, enough=role.least)
            yield started
        finally:
            started.stop()


def unwrap(error: BaseException) -> BaseException:
    """The exception behind what `ray.get` raised."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(error, exceptions.RayTaskError) and isinstance(cause, BaseException) else error


def _start_rewards(started: Session) -> tuple[tuple[str, ...], ...]:
    pools = []
    for number, reward in enumerate(started.config.reward):
        role = started.config.reward_role(reward)
        names = tuple(f"reward-{number}-{i}" for i in range(role.replicas))
        for name in names:
            options = actor_options(role, name, started.namespace, reward.python)
            started.rewards[name] = (
                ray.remote(RewardActor).options(**options).remote(reward.kind, dict(reward.args), role.threads)
            )
        pools.append(names)
    return tuple(pools)


def _start_search(started: Session, pools: tuple[tuple[str, ...], ...]) -> None:
    role = started.config.roles.search
    spec = WorkerSpec(started.config, started.run_dir, started.namespace, pools, MAILBOX)
    for i in range(role.replicas):
        name = f"search-{i}"
        options = actor_options(role, name, started.namespace)
        started.workers[name] = ray.remote(SearchActor).options(**options).remote(spec)


def _pythons(config: Config) -> str:
    """Another reason why a reward may not come up: Ray reports an interpreter that does not start as no place."""
    own = sorted({reward.python for reward in config.reward if reward.python is not None})
    return f", or {', '.join(own)} (reward.python) has not this Python and ray" if own else ""


def _await_ready(
    role: str, actors: dict[str, Any], run_dir: str, timeout_s: float, reason: str = "", enough: int | None = None
) -> tuple[str, ...]:
    """Wait for the first answer of `enough` actors (all of them); the names of the others. reason: what else may be
    wrong if there is none."""
    waiting = {actor.ready.remote(run_dir): name for name, actor in actors.items()}
    missing = 0 if enough is None else len(actors) - enough
    deadline = time.monotonic() + timeout_s
    while len(waiting) > missing:
        check()
        ready, _ = ray.wait(list(waiting), num_returns=1, timeout=POLL_S)
        for ref in ready:
            name = waiting.pop(ref)
            try:
                ray.get(ref)
            except exceptions.RayError as error:
                raise _start_failure(role, name, error) from error
        if time.monotonic() > deadline:
            names = ", ".join(sorted(waiting.values()))
            raise RunError(
                role,
                f"{names} found no place in {timeout_s:.0f} s (roles.{role}.start_timeout_s){reason}; "
                "see dav-ray doctor",
            )
    return tuple(waiting.values())


def _start_failure(role: str, name: str, error: BaseException) -> DavRayError:
    cause = unwrap(error)
    if isinstance(cause, DavRayError):
        return cause
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    mark = f"{UserError.__module__}.{UserError.__name__}: "
    for number, line in enumerate(lines):
        if line.startswith(mark):  # an actor's constructor raised it: Ray keeps the words alone
            return UserError([line.removeprefix(mark), *lines[number + 1 :]])
    return RunError(role, f"{name} did not start: {lines[-1] if lines else type(cause).__name__}")


def _quiet_data() -> None:
    from ray.data import DataContext

    DataContext.get_current().enable_progress_bars = False
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
