"""A fleet of rewards on real Ray actors, as the driver and search workers see it."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray

from dav_ray.config.schema import Config
from dav_ray.rewards.base import Scored
from dav_ray.run_dir.marker import write_marker
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.runtime.reward.fleet import FLEET, FleetStart, reward_specs, start_fleet
from dav_ray.runtime.reward.replica import FleetClient
from dav_ray.runtime.reward.spec import PoolState
from tests.support.deadlines import hung

WAIT_S = 180.0  # replicas start one after another


def samples(*rows: float, size: int = 2) -> np.ndarray:
    """One sample for each number, which is its total."""
    return np.array([[row] + [0.0] * (size - 1) for row in rows], np.float32)


class Run:
    """A fleet, as the driver and search workers see it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run_dir = folder, str(folder / "run")
        self.namespace, self.seen = uuid.uuid4().hex, []
        self.fleet: Any = None
        self.pool = ThreadPoolExecutor(16)
        write_marker(open_storage(self.run_dir))

    def start(self, *rewards: dict[str, Any], linger_s: float = 60.0, **role: Any) -> Run:
        """Its first replicas are up. rewards: kind of tests.support.reward_kinds, and whatever else differs."""
        config = self.config(*rewards, **role)
        specs = [dataclasses.replace(s, linger_s=linger_s) for s in reward_specs(config, self.namespace)]
        self.fleet = start_fleet(specs, self.run_dir, self.namespace)
        FleetStart(self.fleet, config).wait()
        return self

    def config(self, *rewards: dict[str, Any], **role: Any) -> Config:
        named = [{**reward, "kind": f"tests.support.reward_kinds:{reward['kind']}"} for reward in rewards]
        roles = {"reward": {"cpus": 0, "start_timeout_s": hung(180), **role}}
        return Config.model_validate({"model": {"path": "x"}, "prompts": ["a"], "reward": named, "roles": roles})

    def ask(self, rows: np.ndarray, grad: bool = False) -> list[Scored]:
        return FleetClient(FLEET, self.namespace, hung(100))(rows, ["a"] * len(rows), grad)

    def later(self, rows: np.ndarray, grad: bool = False) -> Future[list[Scored]]:
        return self.pool.submit(self.ask, rows, grad)

    def totals(self, rows: np.ndarray) -> list[float]:
        (scored,) = self.ask(rows)
        assert scored.error is None and scored.values is not None, scored.error
        return scored.values.tolist()

    def events(self, name: str) -> list[dict[str, Any]]:
        self.seen += ray.get(self.fleet.events.remote())
        return [fields for event, fields in self.seen if event == name]

    def state(self) -> PoolState:
        (state,) = ray.get(self.fleet.state.remote())
        return state

    def replica(self, name: str) -> Any:
        return ray.get_actor(name, namespace=self.namespace)

    def calls(self) -> list[int]:
        """Samples of each call of the reward."""
        return [int(line) for line in (self.folder / "calls").read_text().split()]


@contextmanager
def fleet_in(folder: Path) -> Iterator[Run]:
    """A run that ends with the block."""
    found = Run(folder)
    try:
        yield found
    finally:
        if found.fleet is not None:
            ray.kill(found.fleet)
        found.pool.shutdown(cancel_futures=True)
