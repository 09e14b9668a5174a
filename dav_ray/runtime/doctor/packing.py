"""All roles together: a place for each actor on live nodes, then on nodes that would be started.

First fit decreasing: what fits in fewest places first, then what is largest. It finds a packing that is good enough for
actors of a few kinds; where it finds none, there may still be one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from dav_ray.config.plan import SPARE_CPUS, RoleNeed, together
from dav_ray.config.schema import Config
from dav_ray.config.sections.roles import PoolRole, RewardRole, Role
from dav_ray.runtime.cluster.placement import demand
from dav_ray.runtime.doctor.pool import TOLERANCE, Demand, Node, NodeType, Pool

SPARE = "Ray Data"


@dataclass(frozen=True)
class Want:
    """Actors of a kind: how many at most, and how many a run cannot do without."""

    name: str
    count: int
    least: int
    demand: Demand


@dataclass(frozen=True)
class Packed:
    """started: new nodes by type; without: actors by role that found no place."""

    started: Mapping[str, int]
    without: Mapping[str, int]


class _Place:
    """A node as it fills up. A part of a GPU comes out of one GPU, whole ones are taken whole."""

    def __init__(self, node: Node | NodeType) -> None:
        self._node = node
        self._free = {name: amount for name, amount in node.resources.items() if name != "GPU"}
        self._gpus = [1.0] * int(node.resources.get("GPU", 0.0) + TOLERANCE)

    def take(self, wanted: Demand) -> bool:
        """Put an actor here if there is room."""
        listed = {name: n for name, n in wanted.resources.items() if name in self._free}
        gpus = self._choose(wanted.resources.get("GPU", 0.0))
        if (
            gpus is None
            or self._node.lacks(wanted)
            or any(self._free[name] + TOLERANCE < n for name, n in listed.items())
        ):
            return False
        for name, n in listed.items():
            self._free[name] -= n
        for number in gpus:
            self._gpus[number] -= min(1.0, wanted.resources["GPU"])
        return True

    def _choose(self, wanted: float) -> list[int] | None:
        """The GPUs for an actor, the fullest ones that will do; None if there are not enough."""
        room = [i for i, free in enumerate(self._gpus) if free + TOLERANCE >= min(1.0, wanted)]
        count = ceil(wanted - TOLERANCE)
        return None if len(room) < count else sorted(room, key=lambda i: self._gpus[i])[:count]


def actor_demand(role: Role) -> Demand:
    return Demand(demand(role), role.labels)


def want_of(need: RoleNeed) -> Want:
    role = need.role
    # of a reward one is enough to start with
    least = 1 if isinstance(role, RewardRole) else role.least if isinstance(role, PoolRole) else role.replicas
    return Want(need.name, need.replicas, need.replicas // role.replicas * least, actor_demand(role))


def phases(config: Config) -> Iterator[tuple[str, list[Want]]]:
    """What is there at the same time: everything, or search and train in turns where each leaves for the other."""
    spare = Want(SPARE, SPARE_CPUS, SPARE_CPUS, Demand({"CPU": 1.0}, {}))
    for name, needs in together(config):
        yield name, [*map(want_of, needs), spare]


def pack(pool: Pool, wanted: Sequence[Want]) -> Packed:
    """Places for all the actors, live nodes before new ones, small nodes before large ones."""
    places = [_Place(node) for node in sorted(pool.nodes, key=_size)]
    started: Counter[str] = Counter()
    without: Counter[str] = Counter()
    for want in sorted(wanted, key=lambda want: _order(pool, want)):
        for _ in range(want.count):
            if any(place.take(want.demand) for place in places):
                continue
            kind = _another(pool, want.demand, started)
            if kind is None:
                without[want.name] += 1
                continue
            started[kind.name] += 1
            places.append(_Place(kind))
            places[-1].take(want.demand)
    return Packed(dict(started), dict(without))


def _another(pool: Pool, wanted: Demand, started: Counter[str]) -> NodeType | None:
    """The smallest type that could hold the actor and of which one more may be started."""
    if sum(started.values()) >= pool.room:
        return None
    left = [kind for kind in pool.types if started[kind.name] < pool.startable(kind) and not kind.lacks(wanted)]
    return min(left, key=_size, default=None)


def _size(place: Node | NodeType) -> tuple[float, float]:
    return place.resources.get("GPU", 0.0), place.resources.get("CPU", 0.0)


def _order(pool: Pool, want: Want) -> tuple[int, float, float]:
    suitable = sum(not node.lacks(want.demand) for node in pool.nodes)
    suitable += sum(not kind.lacks(want.demand) for kind in pool.types)
    return suitable, -want.demand.resources.get("GPU", 0.0), -want.demand.resources.get("CPU", 0.0)
