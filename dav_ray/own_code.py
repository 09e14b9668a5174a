"""Which code of the user's own a configuration names. It is said aloud before any of it is imported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dav_ray.config import Config
from dav_ray.keys import PATH, show
from dav_ray.module_path import on_path
from dav_ray.own_modules import module_file
from dav_ray.own_targets import is_file, split
from dav_ray.reward_checks import DEEPEST, as_reward, factors
from dav_ray.rewards.options import Reward

ABSENT = "not found here"


def announced(config: Config) -> list[str]:
    """One line per import path, interpreter, package or image of the user's own."""
    on_path(config.modules)
    lines = []
    for key, rewards in (("reward", config.reward), ("evaluate.heldout", config.evaluate.heldout)):
        for i, reward in enumerate(rewards):
            lines += _of_reward(key if len(rewards) == 1 else f"{key}[{i}]", reward)
    if ":" in config.evaluate.features:
        lines.append(said_import("evaluate.features", config.evaluate.features))
    roles = config.roles
    for name, role in (("search", roles.search), ("reward", roles.reward), ("train", roles.train)):
        lines += _environment(f"roles.{name}", role)
    return lines


def _of_reward(key: str, reward: Reward, depth: int = 0) -> Iterator[str]:
    if reward.python:
        yield f"runs {show(reward.python, PATH)} ({key}.python)"
    if reward.role is not None:
        yield from _environment(f"{key}.role", reward.role)
    if ":" in reward.kind:
        yield said_import(f"{key}.kind", reward.kind, reward.python)
    model = reward.args.get("model") if reward.kind == "torch_oracle" else None
    if isinstance(model, str) and ":" in model and not model.startswith("dav_ray."):
        yield said_import(f"{key}.args.model", model, reward.python)
    for name, entry in factors(key, reward):
        if (factor := as_reward(entry)) and depth < DEEPEST:
            yield from _of_reward(name, factor, depth + 1)


def _environment(key: str, role: Any) -> Iterator[str]:
    """role: a role, or the keys of one that a reward sets for itself."""
    for name, value in (("python", role.python), ("pip", ", ".join(role.pip or ())), ("container", role.container)):
        if value:
            yield f"runs {show(value, PATH)} ({key}.{name})"


def said_import(key: str, target: str, python: str | None = None) -> str:
    """That a class or function of the user's own is imported, and from where."""
    module, _ = split(target)
    if is_file(target):
        return f"imports {show(target, PATH)} ({key})"
    found = None if python else module_file(module)
    where = found or (f"where {show(python, PATH)} finds it" if python else ABSENT)
    return f"imports {show(target)} from {where} ({key})"
