"""What only the nodes can tell: what is installed there, and whether a role's own environment starts."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dav_ray.config.schema import Config
from dav_ray.config.sections.reward import Reward
from dav_ray.config.sections.roles import Role
from dav_ray.runtime.cluster.device import given_device
from dav_ray.runtime.cluster.failures import last_line
from dav_ray.runtime.cluster.placement import actor_options, run_as
from dav_ray.runtime.cluster.versions import own_version
from dav_ray.runtime.doctor.findings import Finding
from dav_ray.runtime.doctor.packing import actor_demand
from dav_ray.runtime.doctor.pool import Pool
from dav_ray.runtime.doctor.versions import Installed, installed
from dav_ray.runtime.probe.rates import Rates
from dav_ray.runtime.reward.replica import RewardActor

ANSWER_S = 60.0
START_S = 300.0
MEASURE_S = 600.0


def ask_nodes(pool: Pool, timeout_s: float = ANSWER_S) -> tuple[dict[str, Installed], list[Finding]]:
    """What each live node has, by its name, and a finding for each that did not say."""
    task: Any = ray.remote(installed)
    refs: dict[str, Any] = {}
    for node in pool.nodes:
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        refs[node.name] = task.options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote()
    ready, _ = ray.wait(list(refs.values()), num_returns=len(refs), timeout=timeout_s)
    found: dict[str, Installed] = {}
    silent = []
    for name, ref in refs.items():
        if ref not in ready:
            ray.cancel(ref, force=True)
            silent.append(Finding(f"node {name}", f"gave no answer in {timeout_s:.0f} s", ok=False))
            continue
        try:
            found[name] = ray.get(ref)
        except exceptions.RayError as error:
            silent.append(Finding(f"node {name}", f"could not be asked: {last_line(error)}", ok=False))
    return found, silent


def environments(config: Config, pool: Pool, timeout_s: float = START_S) -> Iterator[Finding]:
    """Start each environment that is not the driver's, one after the other, on a node of its role."""
    for reward in config.reward:
        role = config.reward_role(reward)
        if reward.python or own_environment(role):
            yield _try(f"reward {reward.label}", role, pool, timeout_s, reward)
    for name, role in (("search", config.roles.search), ("train", config.roles.train)):
        if own_environment(role):
            yield _try(f"role {name}", role, pool, timeout_s)


def own_environment(role: Role) -> bool:
    return bool(role.python or role.pip or role.container)


class Importer:
    """Lives in a role's environment: it is up once dav_ray and torch have been imported there."""

    def __init__(self) -> None:
        import torch

        self.versions = (own_version(), torch.__version__)


def _try(name: str, role: Role, pool: Pool, timeout_s: float, reward: Reward | None = None) -> Finding:
    subject = f"{name}'s environment"
    if all(node.lacks(actor_demand(role)) for node in pool.nodes):
        return Finding(subject, "not tried: no node is up that could hold it")
    options = actor_options(role, f"doctor-{uuid.uuid4().hex}", "doctor", reward and reward.python)
    options["max_restarts"] = 0
    start, wait_s = time.monotonic(), min(timeout_s, role.start_timeout_s)
    if reward is None:
        actor: Any = ray.remote(Importer).options(**options).remote()
    else:
        actor = ray.remote(RewardActor).options(**options).remote(reward.kind, dict(reward.args), role.threads)
    try:
        ray.get(actor.__ray_ready__.remote(), timeout=wait_s)
        return Finding(subject, f"starts, in {time.monotonic() - start:.0f} s")
    except exceptions.GetTimeoutError:
        own = role.python or (reward and reward.python)
        hint = f"; {own} has not this Python and ray, or its nodes are taken" if own else "; its nodes may be taken"
        return Finding(subject, f"did not start in {wait_s:.0f} s{hint}", ok=False)
    except exceptions.RayError as error:
        return Finding(subject, f"does not start: {last_line(error)}", ok=False)
    finally:
        ray.kill(actor)


def rates(config: Config, pool: Pool, timeout_s: float = MEASURE_S) -> Rates | Finding:
    """Time the model as one search worker has it; a finding where that could not be done."""
    role = config.roles.search
    if all(node.lacks(actor_demand(role)) for node in pool.nodes):
        return Finding("time per round", "not measured: no node is up that could hold a search worker")
    try:
        return run_as(role, _measure, config, timeout_s=timeout_s)
    except TimeoutError:
        return Finding("time per round", f"not measured: no result in {timeout_s:.0f} s", ok=False)
    except exceptions.RayError as error:
        return Finding("time per round", f"not measured: {last_line(error)}", ok=False)


def _measure(config: Config) -> Rates:
    from dav_ray.runtime.probe.measure import measure

    return measure(config, given_device())
