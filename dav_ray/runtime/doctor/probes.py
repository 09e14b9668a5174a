"""What only the nodes can tell: what is installed there, and whether a role's own environment starts."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dav_ray.config.families.alphabet import alphabet_of
from dav_ray.config.families.table import family_of
from dav_ray.config.schema import Config
from dav_ray.config.sections.reward import Reward
from dav_ray.config.sections.roles import RewardRole, Role
from dav_ray.rewards.base import Scored
from dav_ray.rewards.golden import Golden, coarsest, decode, usable
from dav_ray.runtime.cluster.device import given_device
from dav_ray.runtime.cluster.failures import last_line
from dav_ray.runtime.cluster.placement import actor_options, run_as
from dav_ray.runtime.cluster.versions import own_version
from dav_ray.runtime.doctor.findings import Finding
from dav_ray.runtime.doctor.packing import actor_demand
from dav_ray.runtime.doctor.pool import Node, Pool
from dav_ray.runtime.doctor.versions import Installed, installed
from dav_ray.runtime.probe.rates import Rates
from dav_ray.runtime.reward.fleet import reward_specs
from dav_ray.runtime.reward.golden_scores import judge
from dav_ray.runtime.reward.replica import Facts, RewardActor, hardware_of
from dav_ray.runtime.reward.spec import RewardSpec

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
    for reward in config.pooled:
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


def same_scores(config: Config, pool: Pool) -> Iterator[Finding]:
    """Ask a replica of each reward on a node of each kind that could hold one about the same samples: a run refuses
    those that say otherwise."""
    for reward in config.reward:
        subject, role = f"reward {reward.label}'s golden scores", config.reward_role(reward)
        kinds = _kinds(role, pool)
        if reward.where == "search":
            yield Finding(subject, "not asked: it runs in the search workers, each of which is asked before it serves")
        elif reward.golden_check == "off":
            yield Finding(subject, "not asked: golden_check is off")
        elif not kinds:
            yield Finding(subject, "not asked: no node is up that could hold it")
        elif len(kinds) == 1 and reward.golden is None:
            yield Finding(subject, f"not asked: all nodes that could hold it have the same ({next(iter(kinds))})")
        else:
            yield from _compared(subject, config, reward, kinds)


def _kinds(role: RewardRole, pool: Pool) -> dict[str, Node]:
    """A node of each kind of hardware that could hold a replica: "cpu", or a GPU's type as Ray names it."""
    found: dict[str, Node] = {}
    for node in pool.nodes:
        if not node.lacks(actor_demand(role)):
            found.setdefault(hardware_of(node.resources) if role.gpus > 0 else "cpu", node)
    return found


def _compared(subject: str, config: Config, reward: Reward, kinds: Mapping[str, Node]) -> Iterator[Finding]:
    (spec,) = [spec for spec in reward_specs(config, "doctor") if spec.label == reward.label]
    try:
        golden = None if spec.golden is None else decode(Path(spec.golden).read_bytes())
        rows = probe_samples(config) if golden is None else (golden.samples, golden.conditions)
    except (OSError, ValueError) as error:
        yield Finding(subject, f"not asked: {error}", ok=reward.golden is None)
        return
    first = "golden" if golden is not None else ""
    for kind, node in kinds.items():
        try:
            facts, scored = _ask(spec, node, *rows, golden is not None and golden.grad)
        except exceptions.RayError as error:
            yield Finding(subject, f"{kind}: gave no scores: {last_line(error)}", ok=False)
            continue
        if golden is None:
            if scored.error is not None or not usable(scored.values, len(rows[1])):
                yield Finding(subject, f"not asked: made-up samples have no scores: {scored.error or 'no numbers'}")
                return
            precision = coarsest(facts.precision, scored.dtype)
            golden, first = Golden(*rows, np.asarray(scored.values), False, precision), kind
            continue
        verdict = judge(spec, golden, facts, scored)
        said = verdict.words.partition("; the last one, ")[2]
        yield Finding(subject, said or f"{kind} says what {first} says", ok=verdict.admitted)


def _ask(spec: RewardSpec, node: Node, samples: Any, conditions: Any, grad: bool) -> tuple[Facts, Scored]:
    """What a replica on that node scores. RayError where it does not."""
    options = {**spec.options, "name": f"doctor-{uuid.uuid4().hex}", "max_restarts": 0}
    options.pop("label_selector", None)  # the node has the labels
    there = NodeAffinitySchedulingStrategy(node.id, soft=False)
    actor: Any = ray.remote(RewardActor).options(**options, scheduling_strategy=there).remote(*spec.built)
    try:
        ray.get(actor.__ray_ready__.remote(), timeout=min(START_S, spec.role.start_timeout_s))
        asked = [actor.facts.remote(), actor.reproduce.remote(samples, conditions, grad)]
        facts, scored = ray.get(asked, timeout=spec.role.call_timeout_s)
        return facts, scored
    finally:
        ray.kill(actor)


def probe_samples(config: Config) -> tuple[np.ndarray, tuple[str, ...]]:
    """Samples of the kind and size that the model draws, made up. OSError or ValueError where nothing tells."""
    family, num = family_of(config.model), 8
    rng, texts = np.random.default_rng(0), tuple(config.prompts[i % len(config.prompts)] for i in range(num))
    first, second = family.shape(config)
    if family.samples == "sequences":
        return rng.integers(0, len(alphabet_of(config.model).letters), (num, second)), texts
    flat = rng.random((num, 3, 1, 1), np.float32)
    share = np.linspace(0, 1, num, dtype=np.float32).reshape(num, 1, 1, 1)
    return flat + share * (rng.random((num, 3, first, second), np.float32) - flat), texts


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
