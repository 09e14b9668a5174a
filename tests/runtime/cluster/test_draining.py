"""Nodes that come, drain and die while the dispatcher works: real Ray nodes, actors that sleep and need a place."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from tests.runtime.search.test_dispatch import Round
from tests.support.clusters import add_node, cluster_of
from tests.support.deadlines import limit
from tests.support.sleepers import Sleeper


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head on which no worker fits. Each test has nodes of its own: a resource of their own name."""
    with cluster_of(num_cpus=1) as nodes:
        yield nodes


def add(cluster: Cluster, name: str, room: int = 1) -> Any:
    """A node with room for so many workers of this name."""
    return add_node(cluster, num_cpus=0, resources={name: room})


class Placed(Sleeper):
    """Takes `pace` seconds for an item; tells where it was, in place of its name, and when."""

    def __init__(self, pace: float) -> None:
        super().__init__("", pace)
        self.name = self.process.node


def workers(name: str, paces: dict[str, float]) -> dict[str, Any]:
    options: dict[str, Any] = {"num_cpus": 0, "resources": {name: 1}, "max_restarts": -1}
    return {worker: ray.remote(Placed).options(**options).remote(pace) for worker, pace in paces.items()}


def drain(node: str, seconds: float) -> None:
    """As `ray drain-node` does, which says what a provider's notice says; Ray itself takes nothing away."""
    gcs = GcsClient(address=ray.get_runtime_context().gcs_address)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # type: ignore[attr-defined]
    accepted, why = gcs.drain_node(node, reason, "spot", int((time.time() + seconds) * 1000))
    assert accepted, why


def once(number: int, action: Callable[[], None]) -> Callable[[], None]:
    """A tick of the dispatcher that acts in the middle of its run: when it is called for the `number`th time."""
    calls = iter(range(1, 1_000_000))

    def tick() -> None:
        if next(calls) == number:
            action()

    return tick


def places(pool: dict[str, Any]) -> dict[str, str]:
    return {name: ray.get(actor.ready.remote("")).node for name, actor in pool.items()}


@pytest.mark.slow  # four nodes; tests/runtime/search/test_dispatch.py has a node that says that it drains
def test_a_drained_node_gets_nothing_new_and_its_worker_moves(cluster: Cluster, tmp_path: Path) -> None:
    """The chunk that runs there counts; then the worker is started where there is room."""
    add(cluster, "x")
    add(cluster, "x")
    pool = workers("x", {"fast": 0.4, "slow": 3.0})
    first = places(pool)
    spare = add(cluster, "x").node_id
    done = Round(tmp_path, pool).run(20, tick=once(1, lambda: drain(first["slow"], 100)))
    (noticed,) = [event["time"] for event in done.events("draining")]
    there = [(start, end) for _, _, (node, start, end) in done.results if node == first["slow"]]
    assert max(start for start, _ in there) < noticed < max(end for _, end in there)  # what ran was not thrown away
    in_time = limit(150)
    while not done.events("worker_back"):
        in_time()
        done.run(4)
    assert spare in {node for _, _, (node, *_) in done.run(20).results}
    assert [(e["worker"], e["node"]) for e in done.events("draining")] == [("slow", first["slow"])]
    assert not done.events("handed_back") and not done.events("worker_lost")
    assert [event["worker"] for event in done.events("worker_back")] == ["slow"]
    assert places(pool) == {"fast": first["fast"], "slow": spare}


@pytest.mark.slow  # two nodes more; the test above has a node that drains
def test_at_a_drains_deadline_the_chunk_goes_to_another_worker(cluster: Cluster, tmp_path: Path) -> None:
    add(cluster, "y")
    add(cluster, "y")
    pool = workers("y", {"stuck": 100.0, "fast": 0.3})
    first = places(pool)
    done = Round(tmp_path, pool).run(12, tick=once(3, lambda: drain(first["stuck"], 1.5)))
    assert {node for _, _, (node, *_) in done.results} == {first["fast"]}
    assert [event["item"] for event in done.events("stopped")][0] == "2"  # what is at hand; asleep, it does not hear it
    assert [event["item"] for event in done.events("handed_back")] == ["0", "2"]
    assert [event["worker"] for event in done.events("draining")] == ["stuck"]


@pytest.mark.slow
def test_nodes_that_join_and_die_within_a_round(cluster: Cluster, tmp_path: Path) -> None:
    """Workers that had no place get one with the new node; that of the dead node comes back there too."""
    dying = add(cluster, "z")
    pool = workers("z", {"a": 0.5, "b": 0.5, "c": 0.5})
    new: list[str] = []
    round = Round(tmp_path, pool, away=("a", "b", "c"))

    def act() -> None:
        if not new and len(round.results) > 5:
            new.append(add(cluster, "z", 3).node_id)
        elif len(new) == 1 and any(node == new[0] for _, _, (node, *_) in round.results):
            cluster.remove_node(dying, allow_graceful=False)
            new.append("and the old one is dead")

    done = round.run(120, tick=act)
    assert {node for _, _, (node, *_) in done.results} == {dying.node_id, new[0]}
    assert sorted(event["worker"] for event in done.events("worker_joined")) == ["a", "b", "c"]
    assert len(done.events("worker_lost")) == 1
    assert set(places(pool).values()) == {new[0]}
