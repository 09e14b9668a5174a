"""What a configuration will cost and occupy, before anything starts."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from dav_ray.config.batches import too_few_chunks
from dav_ray.config.families.table import family_of
from dav_ray.config.figures import Figures, figures, precision, shown
from dav_ray.config.memory import memory_facts
from dav_ray.config.partition import spans, training_groups
from dav_ray.config.schema import Config
from dav_ray.config.sections.roles import PoolRole, Role
from dav_ray.diffusion.noise_rules import schedule
from dav_ray.search.facts import Spent
from dav_ray.search.options import Search

PROBED = "sizes of chunk and batches are found when the run starts: chunks and optimizer steps may be other numbers"
SPARE_CPUS = 1  # Ray Data's own tasks need one free, else the buffer waits for ever


@dataclass(frozen=True)
class RoleNeed:
    """One role's actors: how many, and what each of them takes."""

    name: str
    replicas: int
    role: Role


@dataclass(frozen=True)
class Plan:
    """Counts per accepted sample and per round. An evaluation is one guided prediction of the network."""

    roles: tuple[RoleNeed, ...]
    evaluations: int  # per accepted sample; at most, if the last step is deterministic or candidates are equal
    backward_evaluations: int  # of these, how many run backward too
    reference_evaluations: int  # per accepted sample, beside `evaluations`: the anchor's
    network_passes: int  # per evaluation: 2 with classifier-free guidance
    reward_calls: int  # per accepted sample and reward
    trajectories: int  # accepted per round
    chunks: int  # work items per round
    transitions: int  # per round
    optimizer_steps: int  # per round
    figures: Figures  # of an accepted sample
    later: Plan | None = None  # of rounds that start from the last one's samples; prompts new to them cost as at first

    @property
    def cpus(self) -> float:
        return sum(need.replicas * need.role.cpus for need in self.roles)

    @property
    def gpus(self) -> float:
        return sum(need.replicas * need.role.gpus for need in self.roles)

    @property
    def evaluations_per_round(self) -> int:
        return (self.evaluations + self.reference_evaluations) * self.trajectories


def plan(config: Config) -> Plan:
    """What a run costs. With a model of tokens it is the most: equal candidates are evaluated once."""
    facts = config.search.facts
    later = _plan(config, facts.spent(warm=True)) if facts.starts and config.rounds > 1 else None
    return _plan(config, facts.spent(), later)


def _plan(config: Config, spent: Spent, later: Plan | None = None) -> Plan:
    search = config.search
    again = (
        spent.reference if precision(config) != "float32" else 0
    )  # what is held against the pretrained model is taken in float32
    return Plan(
        roles=_needs(config),
        evaluations=spent.network + again,
        backward_evaluations=spent.backward,
        reference_evaluations=spent.reference,
        network_passes=family_of(config.model).passes(config),
        reward_calls=spent.reward,
        trajectories=search.trajectories,
        chunks=ceil(search.trajectories / search.chunk),
        transitions=search.trajectories * fitted_steps(config),
        optimizer_steps=_optimizer_steps(config),
        figures=figures(config, spent),
        later=later,
    )


def together(config: Config) -> tuple[tuple[str, tuple[RoleNeed, ...]], ...]:
    """Which roles are there at the same time: all, or search and train in turns where each leaves for the other."""
    needs = plan(config).roles
    if config.roles.train.lifetime != "round":
        return (("all roles", needs),)
    stay = tuple(need for need in needs if not (isinstance(need.role, PoolRole) and need.role.idle_s is not None))
    searching = tuple(need for need in needs if need.name != "train")
    return ("all roles while searching", searching), ("all roles while training", stay)


def most_at_once(config: Config) -> tuple[float, float]:
    """CPUs and GPUs of all roles that are there at the same time, at most."""
    held = [needs for _, needs in together(config)]
    cpus = max(sum(need.replicas * need.role.cpus for need in needs) for needs in held)
    return cpus, max(sum(need.replicas * need.role.gpus for need in needs) for needs in held)


def price_per_hour(config: Config) -> float:
    """Of all roles that are there at the same time, at most: where search and training take turns on the same places,
    these are paid for once. 0 where the recipe gives no price."""
    return max(sum(need.replicas * need.role.price for need in needs) for _, needs in together(config))


def costs(config: Config, seconds: float) -> dict[str, float]:
    """Metrics of a round that took so long, in the currency of the recipe's prices; none without prices."""
    paid = price_per_hour(config) * seconds / 3600
    return {"cost/round": paid, "cost/per_sample": paid / config.search.trajectories} if paid else {}


def crowded(config: Config, cores: int) -> str:
    """What is to be said where this machine has fewer cores than an embedded Ray declares for the roles."""
    counted = ceil(most_at_once(config)[0]) + SPARE_CPUS
    if counted <= cores:
        return ""
    return f"{cores} CPU{'s' * (cores > 1)} here, the recipe counts on {counted}: everything runs, slower"


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_cpus(config: Config, cores: int) -> int:
    """CPUs that an embedded Ray declares: enough for every role, so that shares of few cores still fit."""
    return max(cores, ceil(plan(config).cpus) + SPARE_CPUS)


def render(config: Config, plan: Plan) -> str:
    """The plan as aligned lines of text."""
    search = config.search
    at_most = "at most " if search.gradient or family_of(config.model).discrete else ""
    evaluations = f"{at_most}{plan.evaluations}"
    if plan.backward_evaluations:
        evaluations += f", {plan.backward_evaluations} of them with backward"
    if plan.reference_evaluations:
        evaluations += f", and {plan.reference_evaluations} of the pretrained model"
    evaluations += f" ({plan.network_passes} network passes each)"

    def then(count: Callable[[Plan], int]) -> str:
        return f"; later rounds {at_most}{count(plan.later):,}" if plan.later else ""

    calls = f"{at_most}{plan.reward_calls} for each of {len(config.reward)} rewards{then(lambda p: p.reward_calls)}"
    per_round = f"{at_most}{plan.evaluations_per_round:,}{then(lambda p: p.evaluations_per_round)}"
    init = config.init
    facts = [
        *([("starts from", f"policy {init.version} of {init.run}")] if init.run else []),
        (
            "rounds",
            f"{config.rounds}, each with {search.trajectories} accepted samples in {plan.chunks} chunks",
        ),
        *_skipped(search),
        ("network evaluations per sample", f"{evaluations}{then(lambda p: p.evaluations)}"),
        ("network evaluations per round", per_round),
        ("reward calls per sample", calls),
        *_work(plan, at_most),
        *memory_facts(config),
        (
            "training per round",
            f"{plan.transitions:,} transitions{_fitted(config)}, {plan.optimizer_steps} optimizer steps",
        ),
        *([("batches", PROBED)] if config.batches == "probed" else []),
        *([("warning", words)] if (words := too_few_chunks(config)) else []),
        *((f"role {need.name}", describe_need(need)) for need in plan.roles),
        (
            "all roles",
            f"{most_at_once(config)[0]:g} CPUs, {most_at_once(config)[1]:g} GPUs{_turns(config)}; "
            f"{SPARE_CPUS} CPU more must stay free for Ray Data",
        ),
    ]
    if price := price_per_hour(config):
        facts.append(("price", f"{price:,.4g} per hour"))
    width = max(len(name) for name, _ in facts)
    return "\n".join(f"{name:<{width}}  {fact}" for name, fact in facts)


def fitted_steps(config: Config) -> int:
    """Transitions of a trajectory that an epoch of the M-step fits."""
    search = config.search
    fitted = search.steps - len(search.walked)
    if isinstance(search.eta, tuple) and schedule(search.eta, search.steps)[-1] == 0:
        fitted -= 1  # the last step draws nothing either
    return min(config.mstep.steps or fitted, fitted)


def _fitted(config: Config) -> str:
    some = fitted_steps(config) < config.search.steps
    return f" ({fitted_steps(config)} of {config.search.steps} of each trajectory)" if some else ""


def _skipped(search: Search) -> list[tuple[str, str]]:
    """What the steps without a score change at most, where that is known."""
    facts = search.facts
    if not (skipped := facts.unscored):
        return []
    bound = sum(facts.change(t) for t in skipped)
    words = f"; without them the law differs by at most {bound:.2g} in total variation" if search.spread else ""
    return [("steps without a score", f"{len(skipped)} of {search.steps}{words}")]


def _work(plan: Plan, at_most: str) -> list[tuple[str, str]]:
    """Floating-point operations and bytes, where they are known."""
    found, later, facts = plan.figures, plan.later, []
    if found.flops:
        facts.append(
            ("work per sample", f"{at_most}{found.flops}{f'; later rounds {later.figures.flops}' if later else ''}")
        )
    if found.reward_bytes is not None:
        sizes = [f"{shown(found.reward_bytes)}B, {shown(found.reward_bytes * plan.trajectories)}B per round"]
        sizes += [f"later rounds {shown(later.figures.reward_bytes or 0.0)}B"] if later else []
        facts.append(("samples sent to rewards", f"{at_most}{'; '.join(sizes)}"))
    return facts


def _turns(config: Config) -> str:
    return " at a time, as search and training take turns" if len(together(config)) > 1 else ""


def describe_need(need: RoleNeed) -> str:
    """A role's demand in words, for instance `2 x 0.5 CPU`."""
    role = need.role
    parts = [f"{role.cpus:g} CPU", *([f"{role.gpus:g} GPU"] if role.gpus else [])]
    parts += [f"{role.memory_gb:g} GB"] if role.memory_gb else []
    parts += [role.accelerator] if role.accelerator else []
    parts += [f"{amount:g} {name}" for name, amount in role.resources.items()]
    placed = f" on nodes with {', '.join(f'{k}={v}' for k, v in role.labels.items())}" if role.labels else ""
    return f"{need.replicas} x {', '.join(parts)}{placed}"


def _optimizer_steps(config: Config) -> int:
    """Per round, as the rank with most rows counts them: the first epoch group by group, later ones over all."""
    search, mstep, world = config.search, config.mstep, config.roles.train.replicas
    chunks = spans(search.trajectories, search.chunk)
    groups = training_groups(search.trajectories, search.chunk, mstep.group, world)
    shares = [ceil(sum(len(chunks[i]) for i in group) / world) * fitted_steps(config) for group in groups]
    size = max(1, mstep.batch_size // world)
    return sum(ceil(share / size) for share in shares) + (mstep.epochs - 1) * ceil(sum(shares) / size)


def _needs(config: Config) -> tuple[RoleNeed, ...]:
    roles = config.roles
    return (
        RoleNeed("search", roles.search.replicas, roles.search),
        *_reward_needs(config),
        RoleNeed("train", roles.train.replicas, roles.train),
    )


def _reward_needs(config: Config) -> list[RoleNeed]:
    """One for all rewards that run alike, one for each that has a role of its own."""
    alike = [reward for reward in config.pooled if reward.role is None]
    shared = config.roles.reward
    common = [RoleNeed("reward", shared.replicas * len(alike), shared)] if alike else []
    own = [(reward.label, config.reward_role(reward)) for reward in config.pooled if reward.role is not None]
    return common + [RoleNeed(f"reward {label}", role.replicas, role) for label, role in own]
