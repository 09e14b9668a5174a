"""The dispatcher on real actors that sleep: a mixed pool stays busy, workers come and go within a round."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

from dav_ray.dispatch import Dispatcher
from dav_ray.lives import Answer, Life
from dav_ray.run_files import RunLog
from dav_ray.storage import open_storage


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@dataclass(frozen=True)
class Item:
    name: str


class Sleeper:
    """Takes `pace` seconds for an item; `born` seconds until it answers at all."""

    def __init__(self, name: str, pace: float, born: float = 0.0) -> None:
        time.sleep(born)
        self.name, self.pace = name, pace
        here = ray.get_runtime_context()
        self.life = Life.begin(here.get_node_id(), here.get_worker_id())

    def ready(self, run_dir: str) -> Life:
        return self.life

    @ray.method(num_returns=2)
    def search(self, item: Item, halvings: int) -> tuple[str, Answer]:
        start = time.time()
        time.sleep(self.pace)
        return item.name, Answer((self.name, start, time.time()), self.life)


def pool(paces: dict[str, float], **born: float) -> dict[str, Any]:
    workers = {
        name: ray.remote(Sleeper).options(num_cpus=0, max_restarts=-1).remote(name, pace, born.get(name, 0.0))
        for name, pace in paces.items()
    }
    ray.get([workers[name].ready.remote("") for name in paces if name not in born])
    return workers


def never(name: str) -> Any:
    raise AssertionError(f"{name} is gone for good")


class Round:
    """One run of a dispatcher, and what came of it."""

    def __init__(
        self,
        folder: Path,
        workers: dict[str, Any],
        away: tuple[str, ...] = (),
        limits: tuple[float, float] = (60, 60),
        renew: Callable[[str], Any] = never,
    ) -> None:
        self.folder, self.results = folder, []
        storage = open_storage(str(folder))
        self.dispatcher = Dispatcher(workers, storage.uri, RunLog(storage, 1, None), *limits, renew)
        here = {name: actor for name, actor in workers.items() if name not in away}
        self.lives = dict(zip(here, ray.get([actor.ready.remote("") for actor in here.values()]), strict=True))
        self.dispatcher.expect(away, self.lives)

    def run(self, items: int, **options: Any) -> Round:
        self.results: list[tuple[Item, str, tuple[str, float, float]]] = []

        def keep(item: Item, table: Any, meta: Any) -> None:
            self.results.append((item, ray.get(table), meta))

        self.dispatcher.run("search", [Item(str(i)) for i in range(items)], keep, **options)
        names = [item.name for item, _, _ in self.results]
        assert sorted(names, key=int) == [str(i) for i in range(items)]  # each once
        assert all(item.name == table for item, table, _ in self.results)
        return self

    def who(self) -> Counter[str]:
        return Counter(meta[0] for _, _, meta in self.results)

    @staticmethod
    def read(folder: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in open_storage(str(folder)).read_lines("events.jsonl")]

    def all_events(self) -> list[dict[str, Any]]:
        return self.read(self.folder)

    def events(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.all_events() if event["event"] == name]


@pytest.mark.slow  # a busy machine adds to the gaps that it measures
def test_sixteen_workers_of_four_speeds_stay_busy(cluster: None, tmp_path: Path) -> None:
    """Until the last chunks: the gaps between a worker's chunks are a small part of its time."""
    paces = {f"w{i}": 0.4 * (1 + i % 4) for i in range(16)}
    done = Round(tmp_path, pool(paces)).run(160)
    last_start = max(start for _, _, (_, start, _) in done.results)
    shares = []
    for name in paces:
        spans = [(start, end) for _, _, (who, start, end) in done.results if who == name and end <= last_start]
        shares.append(sum(end - start for start, end in spans) / (spans[-1][1] - spans[0][0]))
    assert min(shares) > 0.95
    counts = done.who()
    fast, slow = (sum(counts[f"w{i}"] for i in range(k, 16, 4)) for k in (0, 3))
    assert 3 < fast / slow < 5


def test_a_worker_that_comes_up_in_the_middle_gets_work(cluster: None, tmp_path: Path) -> None:
    done = Round(tmp_path, pool({"early": 0.1, "late": 0.1}, late=1.5), away=("late",)).run(60)
    assert done.who()["late"] > 5
    assert [event["worker"] for event in done.events("worker_joined")] == ["late"]


def test_a_fast_worker_ends_the_round_of_a_slow_one(cluster: None, tmp_path: Path) -> None:
    """What the slow one still holds is doubled; it is not given new work before it is done with the old."""
    done = Round(tmp_path, pool({"fast": 0.1, "slow": 2.0}))
    done.run(30)
    assert done.who()["slow"] == 1 and len(done.events("doubled")) == 1
    again = done.run(10)
    assert again.who() == {"fast": 10}


def test_a_killed_worker_comes_back(cluster: None, tmp_path: Path) -> None:
    workers = pool({"a": 0.1, "b": 0.1})
    calls = iter(range(10_000))

    def tick() -> None:
        if next(calls) == 5:
            ray.kill(workers["b"], no_restart=False)

    done = Round(tmp_path, workers).run(150, tick=tick)
    assert [event["worker"] for event in done.events("worker_lost")] == ["b"]
    assert done.events("worker_back") and done.who()["b"] > 10


def test_a_worker_that_dies_when_it_is_idle_is_told_of(cluster: None, tmp_path: Path) -> None:
    """Ray starts it again unseen; its next answer comes from another life."""
    workers = pool({"a": 0.1})
    done = Round(tmp_path, workers).run(2)
    os.kill(done.lives["a"].pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while True:
        assert time.monotonic() < deadline
        with contextlib.suppress(ray.exceptions.RayError):
            if ray.get(workers["a"].ready.remote("")).id != done.lives["a"].id:
                break
    done.run(2)
    (told,) = done.events("worker_restarted")
    assert (told["worker"], told["node"]) == ("a", done.lives["a"].node)
    assert told["pid"] != done.lives["a"].pid
    assert done.events("actor_placed")[-1]["actor"] == "a"
    assert not done.events("worker_lost")
    done.run(2)
    assert len(done.events("worker_restarted")) == 1
