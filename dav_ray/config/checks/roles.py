"""Checks the labels, resources, packages and interpreters of roles, which Ray would refuse only much later."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from dav_ray.config.schema import Config
from dav_ray.redact import show

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_LABEL_KEY = re.compile(rf"(?:[A-Za-z0-9.-]{{1,253}}/)?{_NAME}")
_LABEL_VALUE = re.compile(rf"|!?{_NAME}|!?in\({_NAME}(?:, ?{_NAME})*\)")
_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:\[[A-Za-z0-9._,-]+\])?\s*(?:@\s*\S+|[<>=!~;].*[A-Za-z0-9*'\"]|)")
_OWN_KEYS = {"CPU": "cpus", "GPU": "gpus", "memory": "memory_gb", "object_store_memory": "memory_gb"}
SMALLEST = 1e-4  # Ray counts in steps of this size


def role_mistakes(config: Config) -> Iterator[str]:
    roles = config.roles
    yield from _mistakes("roles.search", roles.search)
    yield from _mistakes("roles.reward", roles.reward)
    yield from _mistakes("roles.train", roles.train)
    for i, reward in enumerate(config.reward):
        if reward.role is not None:
            yield from _mistakes(f"reward[{i}].role", reward.role)


def _mistakes(key: str, role: Any) -> Iterator[str]:
    """role: a role, or the keys of one that a reward sets for itself, None where it does not."""
    for name, value in (role.labels or {}).items():
        if not _LABEL_KEY.fullmatch(name):
            yield f"{key}.labels = {show(name)}: is no name of a label; allowed: letters, digits and ._- between them"
        if not _LABEL_VALUE.fullmatch(value):
            yield f"{key}.labels.{name} = {show(value)}: is no value of a label; allowed: a, !a, in(a, b) or !in(a, b)"
    amounts = {f"resources.{name}": amount for name, amount in (role.resources or {}).items()}
    for name, amount in {"cpus": role.cpus, "gpus": role.gpus, **amounts}.items():
        if amount and amount < SMALLEST:
            yield f"{key}.{name} = {amount:g}: out of range; allowed: 0, or from {SMALLEST:g}"
    if role.gpus and role.gpus > 1 and key == "roles.search":
        yield f"{key}.gpus = {role.gpus:g}: a search worker computes on one GPU; allowed: 0 to 1"
    elif role.gpus and role.gpus > 1 and role.gpus != int(role.gpus):
        yield f"{key}.gpus = {role.gpus:g}: out of range; allowed: a part of 1, or a whole number"
    for name, own in _OWN_KEYS.items():
        if name in (role.resources or {}):
            yield f"{key}.resources.{name}: is no custom resource; allowed: {key}.{own}"
    for package in role.pip or ():
        plain = package.startswith("-") or "/" in package  # an option, a URL, a file: pip's own to judge
        if not package.isprintable() or not plain and not _PACKAGE.fullmatch(package.strip()):
            yield f"{key}.pip = {show(package)}: is no requirement; allowed: as in a requirements file"
    for name, value in (("python", role.python), ("container", role.container), ("accelerator", role.accelerator)):
        if value is not None and not value.strip():
            yield f"{key}.{name} = {show(value)}: is empty; allowed: text or null"
    if role.python and role.python.strip() and not os.path.isabs(os.path.expanduser(role.python)):
        yield f"{key}.python = {show(role.python)}: is relative; allowed: an interpreter's absolute path on the nodes"
