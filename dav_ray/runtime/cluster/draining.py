"""Nodes that are about to be taken away (idle, spot notice, `ray drain-node`), and which workers stand on them.

Ray places nothing more on such a node and says until when it is there; it ends nothing itself.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray import exceptions

from dav_ray.runtime.cluster.deadlines import Ticker
from dav_ray.runtime.cluster.ray_private import actor_record, drain_reader

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
        self._ticker, self._draining = Ticker(ASK_EVERY_S, at_once=True), drain_reader()

    def ask(self, workers: Mapping[str, Any]) -> dict[str, Drain] | None:
        """The workers (actors by name) that stand on draining nodes; None: asked a moment ago, or the head is away."""
        if not self._ticker.take():
            return None
        try:
            draining = self._draining(ANSWER_S)
        except exceptions.RayError:
            return None
        if not draining:
            return {}
        # where each is, from the head: Ray may have restarted an actor elsewhere unseen
        places = {name: actor_record(actor).node for name, actor in workers.items()}
        nodes = {node: Drain(node, at / 1000 if at else None) for node, at in draining.items()}
        return {name: nodes[node] for name, node in places.items() if node in nodes}
