"""A run on several Ray nodes: who runs where, and nodes that come and go within a round."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from tests.support.clusters import add_node, cluster_of
from tests.support.deadlines import until
from tests.support.runs import events, finish, masked_recipe, recipe, shards, start, wait_for
from tests.support.tiny import save_tiny


def node(cluster: Cluster, cpus: int, **labels: str) -> Any:
    return add_node(cluster, num_cpus=cpus, labels=labels)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head on which nothing but Ray Data's tasks fits."""
    with cluster_of(connect=False, num_cpus=1, labels={"role": "head"}) as found:
        yield found


def placed(run_dir: Path) -> dict[str, dict[str, str]]:
    """Labels of the node on which each actor came up first, by role and number."""
    found = [event for event in events(run_dir) if event["event"] == "actor_placed"]
    return {event["actor"]: event["labels"] for event in reversed(found)}


def roles(**search: Any) -> dict[str, Any]:
    return {
        "search": {"replicas": 2, "cpus": 0.7, "labels": {"role": "search"}, **search},
        "reward": {"cpus": 0.1, "labels": {"role": "reward"}},
        "train": {"cpus": 0.2, "labels": {"accelerator": "a100"}},
    }


def committed(run_dir: Path) -> list[int]:
    return [event["chunk"] for event in events(run_dir) if event["event"] == "chunk_committed"]


@pytest.mark.slow  # a run on four nodes; tests/runtime/cluster/test_placement.py places actors by labels
@pytest.mark.timeout(600)
def test_each_role_runs_where_its_labels_say(cluster: Cluster, tmp_path: Path) -> None:
    """A head, two kinds of search node and a reward node."""
    node(cluster, 1, role="search", accelerator="a100")
    node(cluster, 1, role="search", accelerator="l4")
    node(cluster, 1, role="reward", accelerator="t4")
    masked_recipe(tmp_path, rounds=1, roles=roles(), reward=[{"kind": "gc_content"}, own_reward()])
    finish(start(tmp_path, "tiny.yaml", "--run-dir", "run", "--address", cluster.address), 0)

    where = placed(tmp_path / "run")
    assert sorted(where[name]["accelerator"] for name in where if name.startswith("search")) == ["a100", "l4"]
    assert [where[name]["role"] for name in where if name.startswith("reward-0")] == ["reward"]
    assert [where[name]["accelerator"] for name in where if name.startswith("reward-1")] == ["l4"]
    assert [where[name]["accelerator"] for name in where if name.startswith("train")] == ["a100"]
    assert sorted(committed(tmp_path / "run")) == [0, 1, 2] and len(shards(tmp_path / "run")) == 3


def own_reward() -> dict[str, Any]:
    """A second reward, on another kind of node than the first."""
    return {"kind": "gc_window", "role": {"cpus": 0, "labels": {"accelerator": "l4"}}}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nodes_come_and_go_within_a_round(cluster: Cluster, tmp_path: Path) -> None:
    """One search worker at first; a node for the second joins; then the first one's node dies."""
    save_tiny(tmp_path)
    first = node(cluster, 1, role="search")
    node(cluster, 1, role="reward", accelerator="a100")
    search = {"candidates": 2, "alpha": 0.01, "steps": 30, "guidance_scale": 2.0, "trajectories": 60, "chunk": 1}
    recipe(tmp_path, rounds=1, roles=roles(min_replicas=1), search=search)
    run_dir = tmp_path / "run"
    process = start(tmp_path, "tiny.yaml", "--run-dir", "run", "--address", cluster.address)
    wait_for(run_dir, "chunk_committed", 3, process)
    node(cluster, 1, role="search")
    wait_for(run_dir, "worker_joined", 1, process)
    before = len(committed(run_dir))
    until(lambda: len(committed(run_dir)) > before + 3, "no chunks after the second worker joined", 120)
    assert len(committed(run_dir)) < 50, "the round was over before the node went"
    cluster.remove_node(first, allow_graceful=False)
    finish(process, 0)

    assert sorted(committed(run_dir)) == list(range(60)) and len(shards(run_dir)) == 60
    lost = [event["worker"] for event in events(run_dir) if event["event"] == "worker_lost"]
    joined = [event["worker"] for event in events(run_dir) if event["event"] == "worker_joined"]
    assert len(joined) == 1 and lost and set(lost).isdisjoint(joined)
