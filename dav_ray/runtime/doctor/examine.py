"""`dav-ray doctor`: what the cluster has or could start, what a recipe needs, and what will never work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dav_ray.config.batches import too_few_chunks
from dav_ray.config.plan import cores, crowded, plan
from dav_ray.config.schema import Config
from dav_ray.runtime.cluster.connect import connected
from dav_ray.runtime.doctor import estimates
from dav_ray.runtime.doctor.cluster import look
from dav_ray.runtime.doctor.findings import Finding
from dav_ray.runtime.doctor.fit import fits
from dav_ray.runtime.doctor.pool import Node, NodeType, Pool
from dav_ray.runtime.doctor.probes import ask_nodes, environments, rates, same_scores
from dav_ray.runtime.doctor.versions import compare, installed

HIDDEN = ("node:", "memory", "object_store_memory", "accelerator_type:")
HERE = "this process"


def doctor(config: Config | None, address: str, *, measure: bool = False) -> Iterator[Finding]:
    """Look at a Ray cluster (`auto`, HOST:PORT, or `local`: an embedded one) and at what the roles need.

    measure: time the model on a node of the search. UserError if there is no cluster there.
    """
    with connected(address, config):
        pool = look()
        nodes, silent = ask_nodes(pool)
        yield from compare({HERE: installed(), **nodes})
        yield from silent
        yield from _places(pool, cores() if address == "local" else None)
        if config is None:
            return
        if address == "local" and (line := crowded(config, cores())):
            yield Finding("this machine", line)
        planned = plan(config)
        yield from fits(config, pool)
        if words := too_few_chunks(config):
            yield Finding("search workers", words)
        yield from estimates.memory(config, planned, pool, nodes)
        yield from environments(config, pool)
        yield from same_scores(config, pool)
        if not measure:
            count = f"{planned.evaluations_per_round:,} network evaluations and {planned.transitions:,} transitions"
            yield Finding("time per round", f"{count}; --measure times them")
            return
        measured = rates(config, pool)
        if isinstance(measured, Finding):
            yield measured
        else:
            yield from estimates.time(config, planned, measured)
            yield estimates.replay(config, measured)


def _places(pool: Pool, cores: int | None) -> Iterator[Finding]:
    """cores: of this machine, where the pool is an embedded Ray, which declares as many as the recipe needs."""
    for node in pool.nodes:
        if cores is not None:
            node = replace(node, resources={**node.resources, "CPU": min(cores, node.resources.get("CPU", 0.0))})
        yield Finding(f"node {node.name}", _describe(node))
    for kind in pool.types:
        yield Finding(f"node type {kind.name}", f"{_describe(kind)}: {pool.startable(kind)} more may be started")
    if pool.scaling == "none":
        yield Finding("autoscaler", "none: the nodes that are up are all there is")
    elif pool.scaling == "unknown":
        yield Finding("autoscaler", f"unknown: {pool.why}")


def _describe(place: Node | NodeType) -> str:
    amounts = [f"{amount:g} {name}" for name, amount in sorted(place.resources.items()) if not name.startswith(HIDDEN)]
    labels = [f"{key}={value}" for key, value in sorted(place.labels.items()) if key != "ray.io/node-id"]
    return ", ".join(amounts) + (f" [{', '.join(labels)}]" if labels else "")
