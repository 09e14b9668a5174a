"""Nodes that are about to be taken away (idle, spot notice, `ray drain-node`), and which workers stand on them.

Ray places nothing more on such a node and says until when it is there; it ends nothing itself.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray import exceptions
from ray._private.state import actors as actor_table
from ray._raylet import GcsClient  # type: ignore[attr-defined]

ASK_EVERY_S = 1.0
ANSWER_S = 5.0


@dataclass(frozen=True)
class Drain:
    """node: its id; deadline: seconds of `time.time()` after which it may be gone; None: not said."""

    node: str
    deadline: float | None

    @property
    def over(self) -> bool:
        return self.deadline is not None and time.time() > self.deadline


class Drains:
    """What the cluster drains, asked at most every `ASK_EVERY_S` seconds: one call where nothing drains."""

    def __init__(self) -> None:
        self._gcs: Any = GcsClient(address=ray.get_runtime_context().gcs_address)
        self._asked = float("-inf")

    def ask(self, workers: Mapping[str, Any]) -> dict[str, Drain] | None:
        """The workers (actors by name) that stand on draining nodes; None: asked a moment ago, or the head is away."""
        now = time.monotonic()
        if now - self._asked < ASK_EVERY_S:
            return None
        self._asked = now
        try:
            told: dict[str, int] = self._gcs.get_draining_nodes(timeout=ANSWER_S)  # milliseconds; 0: no deadline
        except exceptions.RayError:
            return None
        if not told:
            return {}
        # where each is, from the head: Ray may have restarted an actor elsewhere unseen
        places = {name: actor_table(actor._ray_actor_id.hex()).get("Address", {}) for name, actor in workers.items()}
        nodes = {node: Drain(node, at / 1000 if at else None) for node, at in told.items()}
        return {name: nodes[at["NodeID"]] for name, at in places.items() if at.get("NodeID") in nodes}
