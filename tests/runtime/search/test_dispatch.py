"""The dispatcher on real actors that sleep: a mixed pool stays busy, workers come and go within a round."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray

from dav_ray.config.sections.roles import PoolRole
from dav_ray.errors import RewardError, RunError
from dav_ray.run_dir.records import RunLog
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.runtime.search.dispatch import Dispatcher, Done
from dav_ray.runtime.search.workers import SearchTeam
from tests.support.deadlines import limit, stretched, until
from tests.support.sleepers import EVIDENCE, Bad, Item, Nan, Patient, Sleeper


def pool(paces: dict[str, float], **born: float) -> dict[str, Any]:
    workers = {
        name: ray.remote(Sleeper).options(num_cpus=0, max_restarts=-1).remote(name, pace, born.get(name, 0.0))
        for name, pace in paces.items()
    }
    ray.get([workers[name].ready.remote("") for name in paces if name not in born])
    return workers


def once(ready: Callable[[], Any], action: Callable[[], Any]) -> Callable[[], None]:
    """A tick of the dispatcher that acts the first time that something is so."""
    left = [action]

    def tick() -> None:
        if left and ready():
            left.pop()()

    return tick


def never(name: str) -> Any:
    raise AssertionError(f"{name} is gone for good")


def team_of(
    workers: dict[str, Any], folder: Path, renew: Callable[[str], Any] = never, away: tuple[str, ...] = ()
) -> SearchTeam:
    """These actors as a run's search workers; work starts once all have answered that are not away."""
    log, left = RunLog(open_storage(str(folder)), 1, None), dict(workers)
    build: Callable[[str], Any] = lambda name: left.pop(name) if name in left else renew(name)  # noqa: E731
    least = {"min_replicas": len(workers) - len(away)}
    role = PoolRole(replicas=len(workers), start_timeout_s=300).model_copy(update=least)
    team = SearchTeam(list(workers), build, role, str(folder), log)
    team.ensure()
    workers.update(team.actors)
    return team


class Round:
    """One run of a dispatcher, and what came of it."""

    def __init__(
        self,
        folder: Path,
        workers: dict[str, Any],
        away: tuple[str, ...] = (),
        limits: tuple[float, float] | None = None,
        renew: Callable[[str], Any] = never,
    ) -> None:
        self.folder, self.batches = folder, list[int]()
        self.results: list[tuple[Item, str, tuple[str, float, float]]] = []
        team = self.team = team_of(workers, folder, renew, away)
        self.processes = dict(team.processes)  # those of the beginning
        call, start = limits or (stretched(60), stretched(60))
        team.role = team.role.model_copy(update={"call_timeout_s": call, "start_timeout_s": start})
        self.dispatcher = Dispatcher(team, team.log)

    def run(self, items: int, **options: Any) -> Round:
        self.results.clear()

        def keep(done: Sequence[Done]) -> None:
            self.batches.append(len(done))
            self.results += [(item, ray.get(table), meta) for item, table, meta in done]

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
def test_sixteen_workers_of_four_speeds_stay_busy(shared_ray: None, tmp_path: Path) -> None:
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


def test_what_is_there_is_handed_on_in_one_go(shared_ray: None, tmp_path: Path) -> None:
    """While the driver is busy for a second, four workers end their two items each."""
    workers = pool({f"w{i}": 0.05 for i in range(4)})
    calls = iter(range(10_000))

    def tick() -> None:
        if next(calls) == 3:
            time.sleep(1)

    done = Round(tmp_path, workers).run(24, tick=tick)
    assert max(done.batches) == 8 and sum(done.batches) == 24


def test_what_is_done_is_kept_where_another_item_ends_the_run(shared_ray: None, tmp_path: Path) -> None:
    workers = pool({f"w{i}": 0.2 for i in range(3)})
    workers["bad"] = ray.remote(Bad).options(num_cpus=0).remote("bad", 0.3)
    kept: list[str] = []
    round = Round(tmp_path, workers)
    with pytest.raises(RunError, match="chunk . on bad: ValueError: no"):
        round.dispatcher.run(
            *("search", [Item(str(i)) for i in range(4)], lambda done: kept.extend(item.name for item, _, _ in done)),
            lambda: time.sleep(1),
        )
    assert len(kept) == 3


def test_bad_data_ends_the_run_and_the_evidence_is_told_of(shared_ray: None, tmp_path: Path) -> None:
    """No worker is lost for it, and nobody else is asked."""
    round = Round(tmp_path, {"a": ray.remote(Nan).options(num_cpus=0).remote("a", 0.0)})
    with pytest.raises(RewardError, match="judge gave nan for chunk 0; evidence: quarantine/"):
        round.run(3)
    assert [(e["worker"], e["item"], e["file"]) for e in round.events("quarantined")] == [("a", "0", EVIDENCE)]
    assert round.results == [] and not round.events("worker_lost") and not round.events("requeued")


@pytest.mark.thorough
def test_a_worker_whose_node_drains_ends_its_item_and_is_started_again(
    shared_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the only node says so for a while, where both stand; tests/runtime/cluster/test_draining.py has one that is
    drained, and another one."""
    here, asked, draining = ray.get_runtime_context().get_node_id(), list[float](), dict[str, int]()

    def reader() -> Callable[[float], dict[str, int]]:
        def draining_nodes(timeout_s: float) -> dict[str, int]:
            asked.append(timeout_s)
            return dict(draining)

        return draining_nodes

    monkeypatch.setattr("dav_ray.runtime.cluster.draining.drain_reader", reader)
    monkeypatch.setattr("dav_ray.runtime.cluster.draining.ASK_EVERY_S", 0.0)
    done, in_time = Round(tmp_path, pool({"fast": 0.05, "slow": 0.6})), limit(60)

    def tick() -> None:
        in_time()
        if len(done.results) > 4 and not done.events("draining"):
            draining[here] = 0  # until when is not said
        if "slow" in done.team.away:
            draining.clear()

    done.run(20, tick=tick)
    while {event["worker"] for event in done.events("worker_back")} != {"fast", "slow"}:
        done.run(2, tick=tick)
    assert asked and set(asked) == {5.0}
    told = {(event["worker"], event["node"]) for event in done.events("draining")}
    assert told == {("fast", here), ("slow", here)}
    assert done.results and not done.events("handed_back") and not done.events("requeued")
    assert not done.events("worker_lost") and not done.events("worker_hung")


def test_a_worker_that_comes_up_in_the_middle_gets_work(shared_ray: None, tmp_path: Path) -> None:
    done = Round(tmp_path, pool({"early": 0.1, "late": 0.1}, late=1.5), away=("late",)).run(20)
    in_time = limit(60)
    while not done.events("worker_joined"):  # how long its process takes to start is the machine's affair
        in_time()
        done.run(20)
    assert done.run(60).who()["late"] > 5
    assert [event["worker"] for event in done.events("worker_joined")] == ["late"]


def test_a_fast_worker_ends_the_round_of_a_slow_one(shared_ray: None, tmp_path: Path) -> None:
    """What the slow one is at is doubled, and what it has not started before that; it is not given new work before it
    is done with the old."""
    done = Round(tmp_path, pool({"fast": 0.1, "slow": 2.0}))
    done.run(30)
    doubled = [int(event["item"]) for event in done.events("doubled")]
    assert done.who()["slow"] == 1 and len(doubled) == 2 and doubled[0] > doubled[1]
    again = done.run(10)
    assert again.who() == {"fast": 10}


def test_the_loser_of_a_doubled_item_is_told_to_stop(shared_ray: None, tmp_path: Path) -> None:
    """It would take a minute; it is free for the next round in a second, and nobody takes it for lost."""
    workers = {
        name: ray.remote(Patient).options(num_cpus=0, max_restarts=-1).remote(name, pace)
        for name, pace in {"fast": 0.1, "slow": 60.0}.items()
    }
    ray.get([worker.ready.remote("") for worker in workers.values()])
    done = Round(tmp_path, workers)
    assert done.run(10).who() == {"fast": 10}
    told, doubled = done.events("stopped"), done.events("doubled")  # what it has not started, then what it is at
    assert [(event["worker"], event["item"]) for event in told] == [("slow", event["item"]) for event in doubled]
    assert [event["worker"] for event in doubled] == ["fast", "fast"]
    began = time.monotonic()
    ray.get(workers["slow"].ready.remote(""), timeout=stretched(10))
    assert time.monotonic() - began < stretched(5)
    assert done.run(5).who() == {"fast": 5}
    assert len(done.events("doubled")) == 4 and not done.events("worker_lost") and not done.events("requeued")


def test_a_killed_worker_comes_back(shared_ray: None, tmp_path: Path) -> None:
    """A second of work is left when it dies, so that its loss is seen in this round."""
    done, in_time = Round(tmp_path, pool({"a": 0.1, "b": 0.1})), limit(60)
    kill = once(lambda: done.results, lambda: os.kill(done.processes["b"].pid, signal.SIGKILL))
    done.run(20, tick=kill)
    while not done.events("worker_back"):
        in_time()
        done.run(5)
    assert [event["worker"] for event in done.events("worker_lost")] == ["b"]
    assert done.run(20).who()["b"] > 5


def test_a_worker_that_dies_when_it_is_idle_is_told_of(shared_ray: None, tmp_path: Path) -> None:
    """Ray starts it again unseen; its next reply comes from another process."""
    workers = pool({"a": 0.1})
    done = Round(tmp_path, workers).run(2)
    os.kill(done.processes["a"].pid, signal.SIGKILL)

    def another() -> bool:
        with contextlib.suppress(ray.exceptions.RayError):
            return ray.get(workers["a"].ready.remote("")).id != done.processes["a"].id
        return False

    until(another, "it does not come back")
    done.run(2)
    (told,) = done.events("worker_restarted")
    assert (told["worker"], told["node"]) == ("a", done.processes["a"].node)
    assert told["pid"] != done.processes["a"].pid
    assert done.events("actor_placed")[-1]["actor"] == "a"
    assert not done.events("worker_lost")
    done.run(2)
    assert len(done.events("worker_restarted")) == 1
