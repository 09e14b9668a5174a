"""What the cluster has against what a recipe needs."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from dav_ray.config import Config
from dav_ray.errors import RunError
from dav_ray.placement import demand
from dav_ray.plan import SPARE_CPUS, Plan, RoleNeed, describe_need, local_cpus, plan
from dav_ray.roles import Role

LIBRARIES = ("dav_ray", "ray", "torch", "diffusers")
HIDDEN = ("node:", "memory", "object_store_memory", "accelerator_type:")


@dataclass(frozen=True)
class Finding:
    """One line of the table; `ok` is False where something does not fit."""

    subject: str
    text: str
    ok: bool = True


@dataclass(frozen=True)
class Node:
    """A live node: its total resources by Ray's names, and its labels."""

    name: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]


def doctor(config: Config | None, address: str) -> list[Finding]:
    """Look at a Ray cluster (`auto`, HOST:PORT, or `local`: an embedded one) and at what the roles need.

    Raises RunError (role `driver`) if there is no cluster at the address.
    """
    found = [
        Finding("python", platform.python_version()),
        *(Finding(name, _version(name)) for name in LIBRARIES),
    ]
    nodes = _nodes(config, address)
    found += [Finding(f"node {node.name}", _describe(node)) for node in nodes]
    return found + (list(fits(plan(config), nodes)) if config else [])


def fits(plan: Plan, nodes: list[Node]) -> Iterator[Finding]:
    """Whether each role's actor has a node that could hold it, and all of them together the cluster."""
    for need in plan.roles:
        suitable = [node for node in nodes if _holds(node, need.role)]
        text = describe_need(need)
        if suitable:
            yield Finding(f"role {need.name}", f"{text}: fits {len(suitable)} of {len(nodes)} nodes")
        else:
            yield Finding(f"role {need.name}", f"{text}: fits no node ({_lacking(nodes, need.role)})", ok=False)
    for name, wanted in _totals(plan.roles).items():
        had = sum(node.resources.get(name, 0.0) for node in nodes)
        spare = f", {SPARE_CPUS} of it free for Ray Data" if name == "CPU" else ""
        text = f"{wanted:g} {name} needed{spare}; the cluster has {had:g}"
        yield Finding("all roles", text, ok=wanted <= had)


def render(findings: list[Finding]) -> str:
    """The findings as aligned text; what does not fit is marked."""
    width = max(len(finding.subject) for finding in findings)
    return "\n".join(f"{'   ' if f.ok else 'NO '}{f.subject:<{width}}  {f.text}" for f in findings)


def _nodes(config: Config | None, address: str) -> list[Node]:
    import ray

    try:
        if address == "local":
            cpus = local_cpus(config, os.cpu_count() or 1) if config else None
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise RunError("driver", f"no Ray cluster at {address}: {error}") from None
    try:
        return [
            Node(node["NodeManagerHostname"], node["Resources"], node.get("Labels") or {})
            for node in ray.nodes()
            if node["Alive"]
        ]
    finally:
        ray.shutdown()


def _holds(node: Node, role: Role) -> bool:
    enough = all(node.resources.get(name, 0.0) >= amount for name, amount in demand(role).items())
    return enough and all(_label_matches(node.labels.get(key), value) for key, value in role.labels.items())


def _label_matches(label: str | None, wanted: str) -> bool:
    """Ray's label expressions: VALUE, !VALUE, in(A, B), !in(A, B)."""
    expression = wanted.removeprefix("!")
    inner = expression[3:-1] if expression.startswith("in(") and expression.endswith(")") else expression
    return (label in [choice.strip() for choice in inner.split(",")]) != wanted.startswith("!")


def _lacking(nodes: list[Node], role: Role) -> str:
    """Which of the demands no node meets, or that no single node meets all of them."""
    lacks = []
    for name, amount in demand(role).items():
        most = max((node.resources.get(name, 0.0) for node in nodes), default=0.0)
        if most < amount:
            lacks.append(f"{name}: {amount:g} needed, the largest node has {most:g}")
    for key, value in role.labels.items():
        if not any(_label_matches(node.labels.get(key), value) for node in nodes):
            lacks.append(f"label {key}={value}: on no node")
    return "; ".join(lacks) or "each is somewhere, but not together on one node"


def _totals(needs: tuple[RoleNeed, ...]) -> dict[str, float]:
    totals: dict[str, float] = {"CPU": SPARE_CPUS}
    for need in needs:
        for name, amount in demand(need.role).items():
            totals[name] = totals.get(name, 0.0) + need.replicas * amount
    return totals


def _describe(node: Node) -> str:
    amounts = [f"{amount:g} {name}" for name, amount in sorted(node.resources.items()) if not name.startswith(HIDDEN)]
    labels = [f"{key}={value}" for key, value in sorted(node.labels.items()) if key != "ray.io/node-id"]
    return ", ".join(amounts) + (f" [{', '.join(labels)}]" if labels else "")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
