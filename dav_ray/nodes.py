"""Nodes that join the cluster and nodes that are lost, as the driver sees them: events for later readers."""

from __future__ import annotations

import time
from collections.abc import Mapping

import ray
from ray import exceptions

from dav_ray.run_files import RunLog

LOOK_EVERY_S = 2.0


class Nodes:
    """Those that are there when this is made are known; `tick` tells what changed since."""

    def __init__(self, log: RunLog) -> None:
        self._log = log
        self._known = _alive()
        self._looked = time.monotonic()

    def tick(self) -> None:
        """At most one look in LOOK_EVERY_S seconds."""
        if time.monotonic() - self._looked < LOOK_EVERY_S:
            return
        self._looked = time.monotonic()
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
