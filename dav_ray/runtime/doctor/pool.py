"""The nodes that a cluster has and those that it could start, and what each of them can hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Literal

SET_BY_RAY = "ray.io/"  # labels with this prefix appear on nodes that are up, not on the autoscaler's types
DETECTED = ("memory", "accelerator_type:")  # so do these resources, with some launchers
TOLERANCE = 1e-9  # of sums of fractions; Ray counts in 1/10000


@dataclass(frozen=True)
class Demand:
    """What one actor needs of its node: amounts by Ray's names (memory in bytes), labels by Ray's expressions."""

    resources: Mapping[str, float]
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Node:
    """A live node: its total resources by Ray's names, and its labels. kind: the autoscaler's name of its type."""

    name: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    kind: str | None = None
    id: str = ""

    def lacks(self, demand: Demand) -> list[str]:
        """Which demands this node does not meet, were it empty."""
        return _lacks(demand, self.resources, self.labels)

    def holds(self, demand: Demand) -> float:
        """How many such actors it would hold, were it empty."""
        return 0 if self.lacks(demand) else _copies(demand, self.resources)


@dataclass(frozen=True)
class NodeType:
    """A kind of node that the autoscaler may start, `most` of them at a time."""

    name: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    most: int

    def stated(self, demand: Demand) -> Demand:
        """The part of the demand that this type says anything about, or would have to."""
        resources = {key: n for key, n in demand.resources.items() if key in self.resources or not _detected(key)}
        labels = {
            key: value for key, value in demand.labels.items() if key in self.labels or not key.startswith(SET_BY_RAY)
        }
        return Demand(resources, labels)

    def lacks(self, demand: Demand) -> list[str]:
        """Which demands a new node of this type would not meet. What launchers leave unsaid counts as met."""
        return _lacks(self.stated(demand), self.resources, self.labels)

    def holds(self, demand: Demand) -> float:
        """How many such actors a new node would hold."""
        return 0 if self.lacks(demand) else _copies(self.stated(demand), self.resources)

    def amount(self, resource: str) -> float:
        """What a new node has of a resource; without limit where the type leaves it unsaid."""
        return inf if resource not in self.resources and _detected(resource) else self.resources.get(resource, 0.0)


@dataclass(frozen=True)
class Pool:
    """Live nodes, and how they may become more.

    scaling: `types` = an autoscaler that starts nodes of `types`; `none` = nobody does; `unknown` = there may be one,
    and what it starts could not be read (why). most: nodes beside the head at a time, over all types.
    """

    nodes: tuple[Node, ...]
    scaling: Literal["types", "none", "unknown"] = "none"
    types: tuple[NodeType, ...] = ()
    most: int | None = None
    why: str = ""

    def startable(self, kind: NodeType) -> int:
        """How many nodes of a type may still be started."""
        up = sum(node.kind == kind.name for node in self.nodes)
        return max(0, min(kind.most - up, self.room))

    @property
    def room(self) -> int:
        """How many nodes of any type may still be started."""
        names = {kind.name for kind in self.types}
        up = sum(node.kind in names for node in self.nodes)
        most = sum(kind.most for kind in self.types)
        return max(0, min(most, most if self.most is None else self.most) - up)

    def grown(self, worth: Callable[[NodeType], float]) -> float:
        """The most that new nodes could add, where one of a type is worth so much."""
        room, total = self.room, 0.0
        for kind in sorted(self.types, key=worth, reverse=True):
            number = min(room, self.startable(kind))
            if number and worth(kind):
                total, room = total + number * worth(kind), room - number
        return total


def label_matches(label: str | None, wanted: str) -> bool:
    """Ray's label expressions: VALUE, !VALUE, in(A, B), !in(A, B)."""
    expression = wanted.removeprefix("!")
    inner = expression[3:-1] if expression.startswith("in(") and expression.endswith(")") else expression
    return (label in [choice.strip() for choice in inner.split(",")]) != wanted.startswith("!")


def why_nowhere(pool: Pool, demand: Demand) -> str:
    """Which demands no node of the pool meets, live or new, or that none meets all of them."""
    places = [*pool.nodes, *(kind for kind in pool.types if kind.most > 0)]
    what = "node or node type" if pool.types else "node"
    lacks = []
    for key, value in demand.labels.items():
        if all(place.lacks(Demand({}, {key: value})) for place in places):
            lacks.append(f"label {key}={value}: on no {what}")
    labelled = [place for place in places if not place.lacks(Demand({}, demand.labels))]
    which = f"{what} with these labels" if labelled and demand.labels else what
    for name, amount in demand.resources.items():
        if all(place.lacks(Demand({name: amount}, {})) for place in labelled or places):
            most = max((place.resources.get(name, 0.0) for place in labelled or places), default=0.0)
            lacks.append(f"{name}: {amount:g} needed, the largest {which} has {most:g}")
    return "; ".join(lacks) or f"each is somewhere, but not together on one {what}"


def _copies(demand: Demand, resources: Mapping[str, float]) -> float:
    counts = [_share(name, n, resources.get(name, 0.0)) for name, n in demand.resources.items() if n > 0]
    return min(counts, default=inf)


def _share(name: str, each: float, amount: float) -> int:
    """How often `each` goes into the amount; a part of a GPU comes out of one GPU."""
    if name == "GPU" and each < 1:
        return int(amount + TOLERANCE) * int((1 + TOLERANCE) / each)
    return int((amount + TOLERANCE) / each)


def _detected(name: str) -> bool:
    return any(name == known or name.startswith(known) for known in DETECTED)


def _lacks(demand: Demand, resources: Mapping[str, float], labels: Mapping[str, str]) -> list[str]:
    short = [name for name, n in demand.resources.items() if resources.get(name, 0.0) + TOLERANCE < n]
    return short + [key for key, value in demand.labels.items() if not label_matches(labels.get(key), value)]
