"""Actors that stand where search workers do, and sleep. Little is imported here: each of their processes imports it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import ray

from dav_ray.errors import RewardError, Stopped
from dav_ray.runtime.search.one_at_a_time import OneAtATime
from dav_ray.runtime.search.process import Process, Reply

STORE_S = 0.3
EVIDENCE = "quarantine/round-0001-chunk-00003-nan.json"


@dataclass(frozen=True)
class Item:
    name: str


class Sleeper:
    """Takes `pace` seconds for an item; `born` seconds until it answers at all."""

    def __init__(self, name: str, pace: float, born: float = 0.0) -> None:
        time.sleep(born)
        self.name, self.pace = name, pace
        here = ray.get_runtime_context()
        self.process = Process.begin(here.get_node_id(), here.get_worker_id())

    def ready(self, run_dir: str) -> Process:
        return self.process

    @ray.method(num_returns=2)
    def search(self, item: Item, halvings: int) -> tuple[str, Reply]:
        start = time.time()
        time.sleep(self.pace)
        return item.name, Reply((self.name, start, time.time()), self.process)


class Storing(Sleeper):
    """Computes for `pace` seconds, one item at a time, and stores for STORE_S more."""

    def __init__(self, name: str, pace: float, born: float = 0.0) -> None:
        super().__init__(name, pace, born)
        self.computing = OneAtATime()

    @ray.method(num_returns=2)
    def search(self, item: Item, halvings: int) -> tuple[str, Reply]:
        with self.computing.turn(ray.get_runtime_context().is_canceled):
            start = time.time()
            time.sleep(self.pace)
            end = time.time()
        time.sleep(STORE_S)
        return item.name, Reply((self.name, start, end), self.process, computed_s=end - start)


class Patient(Sleeper):
    """Looks ten times a second whether its item is wanted; a search worker looks twice."""

    @ray.method(num_returns=2)
    def search(self, item: Item, halvings: int) -> tuple[str, Reply]:
        start = time.time()
        while time.time() < start + self.pace:
            time.sleep(min(0.1, self.pace))
            if ray.get_runtime_context().is_canceled():
                raise Stopped
        return item.name, Reply((self.name, start, time.time()), self.process)


class Bad(Sleeper):
    """Fails with every item."""

    @ray.method(num_returns=2)
    def search(self, item: Item, halvings: int) -> Any:
        time.sleep(self.pace)
        raise ValueError("no")


class Nan(Sleeper):
    """Its reward gives NaN, and the evidence is kept."""

    @ray.method(num_returns=2)
    def search(self, item: Item, halvings: int) -> Any:
        raise RewardError("judge", item.name, "nan", "nan", (1,)).kept_in(EVIDENCE)
