"""What a configuration will cost and occupy, before anything starts."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from dav_ray.config import Config
from dav_ray.roles import Role
from dav_ray.schedule import spans, training_groups

STEPWISE = ("dav", "smc", "refine")  # strategies that tilt and weigh each step
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
    chunks: int  # work items per round
    transitions: int  # per round
    optimizer_steps: int  # per round

    @property
    def cpus(self) -> float:
        return sum(need.replicas * need.role.cpus for need in self.roles)

    @property
    def gpus(self) -> float:
        return sum(need.replicas * need.role.gpus for need in self.roles)


def plan(config: Config) -> Plan:
    """What a run costs. With a masked model it is the most: equal candidates are evaluated once."""
    search = config.search
    evaluations, calls = _per_sample(config)
    transitions = search.trajectories * search.steps
    return Plan(
        roles=_needs(config),
        evaluations=evaluations,
        backward_evaluations=sum(_lengths(config)) if search.gradient else 0,
        reference_evaluations=sum(_lengths(config)) if search.kind in STEPWISE and search.beta > 0 else 0,
        network_passes=_passes(config),
        reward_calls=calls,
        chunks=ceil(search.trajectories / search.chunk),
        transitions=transitions,
        optimizer_steps=_optimizer_steps(config),
    )


def local_cpus(config: Config, cores: int) -> int:
    """CPUs that an embedded Ray declares: enough for every role, so that shares of few cores still fit."""
    return max(cores, ceil(plan(config).cpus) + SPARE_CPUS)


def render(config: Config, plan: Plan) -> str:
    """The plan as aligned lines of text."""
    search = config.search
    at_most = "at most " if search.gradient or config.model.kind == "masked" else ""
    evaluations = f"{at_most}{plan.evaluations}"
    if plan.backward_evaluations:
        evaluations += f", {plan.backward_evaluations} of them with backward"
    if plan.reference_evaluations:
        evaluations += f", and {plan.reference_evaluations} of the pretrained model"
    per_round = (plan.evaluations + plan.reference_evaluations) * search.trajectories
    facts = [
        (
            "rounds",
            f"{config.rounds}, each with {search.trajectories} accepted samples in {plan.chunks} chunks",
        ),
        ("evaluations per sample", f"{evaluations} ({plan.network_passes} network passes each)"),
        ("evaluations per round", f"{at_most}{per_round:,}"),
        ("reward calls per sample", f"{at_most}{plan.reward_calls} for each of {len(config.reward)} rewards"),
        ("training per round", f"{plan.transitions:,} transitions, {plan.optimizer_steps} optimizer steps"),
        *((f"role {need.name}", describe_need(need)) for need in plan.roles),
        (
            "all roles",
            f"{plan.cpus:g} CPUs, {plan.gpus:g} GPUs; {SPARE_CPUS} CPU more must stay free for Ray Data",
        ),
    ]
    width = max(len(name) for name, _ in facts)
    return "\n".join(f"{name:<{width}}  {fact}" for name, fact in facts)


def describe_need(need: RoleNeed) -> str:
    """A role's demand in words, for instance `2 x 0.5 CPU`."""
    role = need.role
    parts = [f"{role.cpus:g} CPU", *([f"{role.gpus:g} GPU"] if role.gpus else [])]
    parts += [f"{amount:g} {name}" for name, amount in role.resources.items()]
    placed = f" on nodes with {', '.join(f'{k}={v}' for k, v in role.labels.items())}" if role.labels else ""
    return f"{need.replicas} x {', '.join(parts)}{placed}"


def _per_sample(config: Config) -> tuple[int, int]:
    """Network evaluations and reward calls per accepted sample."""
    search, steps, candidates = config.search, config.search.steps, config.search.candidates
    if search.kind == "none":
        return steps, 1
    if search.kind == "best_of_n":
        return candidates * steps, candidates
    lengths = _lengths(config)
    # with gradients the parents are evaluated again, with backward
    parents = [length if search.gradient else 1 for length in lengths]
    evaluations = sum(p + (n - 1) * candidates for p, n in zip(parents, lengths, strict=True))
    return evaluations, sum(n * (candidates + search.gradient) for n in lengths)


def _lengths(config: Config) -> list[int]:
    """Steps of each search that one accepted sample takes."""
    search = config.search
    if search.kind == "smc":
        return [search.steps] * search.particles
    again = max(1, round(search.depth * search.steps))
    return [search.steps, *(search.repeats * [again] if search.kind == "refine" else [])]


def _passes(config: Config) -> int:
    """Network passes per evaluation: two where a condition is guided against none."""
    if config.model.kind == "masked":
        return 2 if config.search.guidance_scale != 1 and any("class=" in prompt for prompt in config.prompts) else 1
    return 1 if config.search.guidance_scale <= 1 else 2


def _optimizer_steps(config: Config) -> int:
    """Per round, as the rank with most rows counts them: the first epoch group by group, later ones over all."""
    search, mstep, world = config.search, config.mstep, config.roles.train.replicas
    chunks = spans(search.trajectories, search.chunk)
    groups = training_groups(search.trajectories, search.chunk, mstep.group, world)
    shares = [ceil(sum(len(chunks[i]) for i in group) / world) * search.steps for group in groups]
    size = max(1, mstep.batch_size // world)
    return sum(ceil(share / size) for share in shares) + (mstep.epochs - 1) * ceil(sum(shares) / size)


def _needs(config: Config) -> tuple[RoleNeed, ...]:
    roles = config.roles
    return (
        RoleNeed("search", roles.search.replicas, roles.search),
        RoleNeed("reward", roles.reward.replicas * len(config.reward), roles.reward),
        RoleNeed("train", roles.train.replicas, roles.train),
    )
