"""Search workers and ranks that take turns on one card: only one of the two fits at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from tests.support.clusters import cluster_of
from tests.support.runs import events, finish, recipe, shards, start, weights
from tests.support.tiny import save_tiny


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """One node with one card."""
    with cluster_of(connect=False, num_cpus=3, resources={"card": 1}) as found:
        yield found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_roles_that_take_turns_give_the_same_bits(cluster: Cluster, tmp_path: Path) -> None:
    save_tiny(tmp_path)
    one = {"replicas": 1, "cpus": 0.2}
    recipe(tmp_path, roles={"search": one, "reward": {"cpus": 0.1}, "train": one})
    finish(start(tmp_path, "tiny.yaml", "--run-dir", "apart"), 0)

    card = [f"roles.{role}.resources.card=1" for role in ("search", "train")]
    turns = ["roles.search.idle_s=0", "roles.train.lifetime=round"]
    command = ["tiny.yaml", *card, *turns, "--run-dir", "turns", "--address", cluster.address]
    finish(start(tmp_path, *command), 0, timeout_s=480)  # two jobs of Ray Train are started

    assert shards(tmp_path / "turns") == shards(tmp_path / "apart")
    assert [weights(tmp_path / "turns", n) for n in (1, 2)] == [weights(tmp_path / "apart", n) for n in (1, 2)]
    found = [event for event in events(tmp_path / "turns") if event["event"] in ("actors_started", "released")]
    one_round = ["search released", "train actors_started", "train released", "search actors_started"]
    assert [f"{event['role']} {event['event']}" for event in found] == ["search actors_started", *one_round, *one_round]
