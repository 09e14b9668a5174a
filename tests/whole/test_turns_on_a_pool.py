"""A pool on which search and training take turns: every card searches, then every card trains, and none is promised
twice. Cards are resources of Ray's nodes; a reward that sleeps makes the search long."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from tests.support.clusters import add_node, cluster_of
from tests.support.runs import events, finish, masked_recipe, start

SLOW = """
import time
from dav_ray.rewards.sequence import GcContent

class Slow(GcContent):
    def __call__(self, samples, conditions):
        time.sleep(0.5)
        return super().__call__(samples, conditions)
"""
ROUNDS = 2
CARDS = {"card": 1}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with cluster_of(connect=False, num_cpus=2) as found:
        for _ in range(2):
            add_node(found, num_cpus=2, resources=CARDS)
        yield found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_card_searches_and_then_trains(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "own_rewards.py").write_text(SLOW)
    roles: dict[str, Any] = {
        "search": {"replicas": 2, "cpus": 0.5, "resources": CARDS, "idle_s": 0, "price": 2.0},
        "reward": {"replicas": 2, "cpus": 0.1},
        "train": {"replicas": 2, "cpus": 0.5, "resources": CARDS, "lifetime": "round", "price": 2.0},
    }
    reward = {"kind": "own_rewards:Slow", "name": "gc_content"}
    masked_recipe(tmp_path, rounds=ROUNDS, roles=roles, reward=reward)
    finish(start(tmp_path, "tiny.yaml", "--run-dir", "run", "--address", cluster.address), 0)

    seen = events(tmp_path / "run")
    turns = [
        (e["event"], e["role"]) for e in seen if e["event"] in ("actors_started", "released") and e["role"] != "reward"
    ]
    once = [("released", "search"), ("actors_started", "train"), ("released", "train"), ("actors_started", "search")]
    assert turns == [("actors_started", "search"), *once * ROUNDS]
    placed: dict[str, set[str]] = {}
    for event in seen:
        if event["event"] == "actor_placed":
            placed.setdefault(event["actor"], set()).add(event["node"])
    of = {role: set().union(*(placed[f"{role}-{i}"] for i in range(2))) for role in ("search", "train")}
    assert of["search"] == of["train"] and len(of["search"]) == 2
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["mstep/rows"] for line in lines if line["role"] == "mstep"] == [12.0] * ROUNDS
    for line in (line for line in lines if "time/round_s" in line):  # two cards at 2 an hour, whoever is on them
        assert line["cost/round"] == pytest.approx(4 * line["time/round_s"] / 3600)
        assert line["cost/per_sample"] == pytest.approx(line["cost/round"] / 12)
