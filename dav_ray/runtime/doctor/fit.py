"""Whether a recipe's roles fit a pool: now, when it has grown, or never."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from dav_ray.config.plan import describe_need, plan
from dav_ray.config.schema import Config
from dav_ray.runtime.doctor.findings import Finding
from dav_ray.runtime.doctor.packing import SPARE, Want, pack, phases, want_of
from dav_ray.runtime.doctor.pool import TOLERANCE, Pool, why_nowhere


def fits(config: Config, pool: Pool) -> Iterator[Finding]:
    """Each role alone, then all of them together, phase by phase where they take turns."""
    for need in plan(config).roles:
        text, ok = _alone(want_of(need), pool)
        yield Finding(f"role {need.name}", f"{describe_need(need)}: {text}", ok)
    for name, together in phases(config):
        yield Finding(name, *_together(together, pool))


def never(config: Config, pool: Pool, *, train: bool = True) -> list[str]:
    """One line per role that can't be placed whatever is started, none where that is not known for sure.

    Counts what a run can't do without, on nodes that are empty: a role alone, then the sums over all of them.
    """
    if pool.scaling == "unknown":
        return []
    types = {kind.name for kind in pool.types}
    renewed = replace(pool, nodes=tuple(node for node in pool.nodes if node.kind not in types))  # idle ones make room
    found = [_never(config, one, train) for one in (pool, renewed)]
    return found[0] if all(found) else []


def _never(config: Config, pool: Pool, train: bool) -> list[str]:
    lines = []
    for need in plan(config).roles:
        want = want_of(need)
        if (train or need.name != "train") and _room(want, pool, new=True) < want.least:
            lines.append(f"role {need.name}: {describe_need(need)} will never schedule: {_why(want, pool)}")
    if lines:
        return lines
    return [
        line
        for name, together in phases(config)
        for line in _short(name, [want for want in together if train or want.name not in ("train", SPARE)], pool)
    ]


def _alone(want: Want, pool: Pool) -> tuple[str, bool]:
    suitable = sum(not node.lacks(want.demand) for node in pool.nodes)
    if _room(want, pool, new=False) >= want.count:
        return f"fits {suitable} of {len(pool.nodes)} nodes", True
    packed, room = pack(pool, [want]), _room(want, pool, new=True)
    if not packed.without or room >= want.count:
        return f"fits when scaled: {_nodes(packed.started)}", True
    unknown = f"; what could be started is unknown ({pool.why})" if pool.scaling == "unknown" else ""
    if room >= want.least:
        return f"{room:g} of {want.count} have a place, at least {want.least} are needed{unknown}", True
    if unknown:
        return f"fits {suitable} of {len(pool.nodes)} nodes{unknown}", False
    return f"will never schedule ({_why(want, pool)})", False


def _together(together: list[Want], pool: Pool) -> tuple[str, bool]:
    packed = pack(pool, together)
    spare = "and 1 CPU free for Ray Data"
    if not packed.without:
        return (f"fit when scaled: {_nodes(packed.started)}" if packed.started else "fit now") + f", {spare}", True
    least = pack(pool, [Want(want.name, want.least, want.least, want.demand) for want in together])
    lacking = ", ".join(f"{number} x {name}" for name, number in packed.without.items())
    unknown = f"; what could be started is unknown ({pool.why})" if pool.scaling == "unknown" else ""
    if not least.without:
        return f"no place found for {lacking}, which a run can do without{unknown}", True
    return f"no place found for {lacking}{unknown}", False


def _room(want: Want, pool: Pool, *, new: bool) -> float:
    """How many of these actors the pool would hold if nothing else were there."""
    live = sum(node.holds(want.demand) for node in pool.nodes)
    return live + (pool.grown(lambda kind: kind.holds(want.demand)) if new else 0)


def _why(want: Want, pool: Pool) -> str:
    room = _room(want, pool, new=True)
    if room == 0 and any(not kind.lacks(want.demand) for kind in pool.types):
        return "no node of a type that could hold it may be started"
    return f"there is room for {room:g} of {want.least}" if room else why_nowhere(pool, want.demand)


def _short(name: str, together: list[Want], pool: Pool) -> Iterator[str]:
    """Resources of which the whole pool, empty and fully grown, has less than all roles take."""
    for resource in sorted({key for want in together for key in want.demand.resources}):
        needed = sum(want.least * want.demand.resources.get(resource, 0.0) for want in together)
        had = sum(node.resources.get(resource, 0.0) for node in pool.nodes)
        had += pool.grown(lambda kind, resource=resource: kind.amount(resource))
        if needed > had + TOLERANCE:
            spare = f", 1 of it free for {SPARE}" if resource == "CPU" and together[-1].name == SPARE else ""
            yield f"{name} will never schedule: {needed:g} {resource} needed{spare}; the most there can be is {had:g}"


def _nodes(started: Mapping[str, int]) -> str:
    return ", ".join(f"{n} node{'s' * (n > 1)} of type {name}" for name, n in started.items())
