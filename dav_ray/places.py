"""Where an actor came up."""

from __future__ import annotations

import ray

from dav_ray.run_files import RunLog


def log_place(log: RunLog, role: str, name: str, node: str) -> None:
    """An event that tells on which node (an id) an actor came up, and what labels that node has."""
    labels = next((found["Labels"] for found in ray.nodes() if found["NodeID"] == node), {})
    mine = {key: value for key, value in labels.items() if key != "ray.io/node-id"}
    log.event("actor_placed", role=role, actor=name, node=node, labels=mine)
