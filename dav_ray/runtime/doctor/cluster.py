"""A look at the cluster that this process is connected to: its nodes, and what its autoscaler may start."""

from __future__ import annotations

from dataclasses import replace

import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dav_ray.runtime.cluster.failures import last_line
from dav_ray.runtime.cluster.ray_private import has_node_groups, node_types
from dav_ray.runtime.doctor.autoscaler import Scaling, read_scaling
from dav_ray.runtime.doctor.pool import Node, Pool

HEAD = "node:__internal_head__"
TIMEOUT_S = 30.0


def look(timeout_s: float = TIMEOUT_S) -> Pool:
    """Live nodes, and the types of those that could come."""
    return scalable(live(), timeout_s)


def live() -> Pool:
    """The nodes that are up, as a pool that nobody adds to."""
    kinds = node_types()
    alive = [node for node in ray.nodes() if node["Alive"]]
    hosts = [node["NodeManagerHostname"] for node in alive]
    return Pool(
        tuple(
            Node(
                name if hosts.count(name) == 1 else f"{name}#{hosts[:number].count(name) + 1}",
                node["Resources"],
                node.get("Labels") or {},
                kinds.get(node["NodeID"]),
                node["NodeID"],
            )
            for number, (name, node) in enumerate(zip(hosts, alive, strict=True))
        )
    )


def scalable(pool: Pool, timeout_s: float = TIMEOUT_S) -> Pool:
    """The pool with what the autoscaler may add; takes a task on the head."""
    if has_node_groups():
        return replace(pool, scaling="unknown", why="a managed service starts nodes and does not tell their labels")
    head = next((node for node in pool.nodes if HEAD in node.resources), None)
    if head is None:
        return replace(pool, scaling="unknown", why="the head is no node of the cluster")
    here = NodeAffinitySchedulingStrategy(head.id, soft=False)
    port = ray.get_runtime_context().gcs_address.rpartition(":")[2]
    ask = ray.remote(read_scaling).options(num_cpus=0, max_retries=0, scheduling_strategy=here).remote(port)
    try:
        found: Scaling = ray.get(ask, timeout=timeout_s)
    except exceptions.GetTimeoutError:
        ray.cancel(ask, force=True)
        return replace(pool, scaling="unknown", why=f"the head gave no answer in {timeout_s:.0f} s")
    except exceptions.RayError as error:
        return replace(pool, scaling="unknown", why=last_line(error))
    if found.types is None:
        return replace(pool, scaling="none")
    return replace(pool, scaling="types", types=found.types, most=found.most)
