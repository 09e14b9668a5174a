"""Which code of the user's own a configuration names. It is said aloud before any of it is imported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dav_ray.config.checks.rewards import DEEPEST, as_reward, factors
from dav_ray.config.imports import said_import
from dav_ray.config.schema import Config
from dav_ray.config.sections.reward import Reward
from dav_ray.mstep.registry import OBJECTIVES
from dav_ray.redact import PATH, show
from dav_ray.registry import Registry, on_path
from dav_ray.rewards.registry import CODE, REWARDS, fact
from dav_ray.search.kinds import SEARCHES


def announced(config: Config) -> list[str]:
    """One line per import path, interpreter, package or image of the user's own."""
    on_path(config.modules)
    lines = []
    for key, rewards in (("reward", config.reward), ("evaluate.heldout", config.evaluate.heldout)):
        for i, reward in enumerate(rewards):
            lines += _of_reward(key if len(rewards) == 1 else f"{key}[{i}]", reward)
    if ":" in config.evaluate.features:
        lines.append(said_import("evaluate.features", config.evaluate.features))
    if not_ours(config.search.kind, SEARCHES):
        lines.append(said_import("search.kind", SEARCHES.target(config.search.kind)))
    if not_ours(config.mstep.objective, OBJECTIVES):
        lines.append(said_import("mstep.objective", OBJECTIVES.target(config.mstep.objective)))
    roles = config.roles
    for name, role in (("search", roles.search), ("reward", roles.reward), ("train", roles.train)):
        lines += _environment(f"roles.{name}", role)
    return lines


def _of_reward(key: str, reward: Reward, depth: int = 0) -> Iterator[str]:
    if reward.python:
        yield f"runs {show(reward.python, PATH)} ({key}.python)"
    if reward.role is not None:
        yield from _environment(f"{key}.role", reward.role)
    if not_ours(reward.kind, REWARDS):
        yield said_import(f"{key}.kind", REWARDS.target(reward.kind), reward.python)
    argument = fact(reward.kind, CODE)
    module = reward.args.get(argument) if argument else None
    if isinstance(module, str) and ":" in module and not module.startswith("dav_ray."):
        yield said_import(f"{key}.args.{argument}", module, reward.python)
    for name, entry in factors(key, reward):
        if (factor := as_reward(entry)) and depth < DEEPEST:
            yield from _of_reward(name, factor, depth + 1)


def not_ours(kind: str, registry: Registry) -> bool:
    """Whether a kind is code that does not ship with dav_ray: of the user's own, or registered by another package."""
    return ":" in kind or (kind not in registry.builtin and not registry.fault(kind))


def _environment(key: str, role: Any) -> Iterator[str]:
    """role: a role, or the keys of one that a reward sets for itself."""
    for name, value in (("python", role.python), ("pip", ", ".join(role.pip or ())), ("container", role.container)):
        if value:
            yield f"runs {show(value, PATH)} ({key}.{name})"
