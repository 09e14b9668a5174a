"""Where actors came up, and nodes that join the cluster or are lost: events for later readers."""

from __future__ import annotations

from collections.abc import Mapping

import ray
from ray import exceptions

from dav_ray.run_dir.records import RunLog
from dav_ray.runtime.cluster.deadlines import Ticker

LOOK_EVERY_S = 2.0


class Nodes:
    """Those that are there when this is made are known; `tick` tells what changed since."""

    def __init__(self, log: RunLog) -> None:
        self._log = log
        self._known = _alive()
        self._ticker = Ticker(LOOK_EVERY_S)

    def tick(self) -> None:
        """At most one look in LOOK_EVERY_S seconds."""
        if not self._ticker.take():
            return
        try:
            now = _alive()
        except exceptions.RayError:
            return  # the head is away: a later look tells
        joined, lost = changes(self._known, now)
        for node, address in lost.items():
            self._log.event("node_lost", node=node, address=address)
        for node, address in joined.items():
            self._log.event("node_joined", node=node, address=address)
        self._known = now


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """(joined, lost) of nodes by id."""
    joined = {node: address for node, address in now.items() if node not in before}
    return joined, {node: address for node, address in before.items() if node not in now}


def _alive() -> dict[str, str]:
    """Address of each living node, by id."""
    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def log_place(log: RunLog, role: str, name: str, node: str) -> None:
    """An event that tells on which node (an id) an actor came up, and what labels that node has."""
    labels = next((found["Labels"] for found in ray.nodes() if found["NodeID"] == node), {})
    mine = {key: value for key, value in labels.items() if key != "ray.io/node-id"}
    log.event("actor_placed", role=role, actor=name, node=node, labels=mine)
