"""A run on a pool that is at zero: nodes come for it, go while their role rests, and are gone afterwards."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.autoscaling import Cluster, NodeType, autoscaled
from tests.support.deadlines import limit, until
from tests.support.runs import RUN, events, recipe, shards
from tests.support.tiny import save_tiny

TYPES = {
    "search": NodeType({"CPU": 1}, {"role": "search"}, most=2),
    "other": NodeType({"CPU": 2}, {"role": "other"}, most=1),
}
ROLES = {
    "search": {"replicas": 2, "cpus": 1, "labels": {"role": "search"}, "idle_s": 0, "min_replicas": 1},
    "reward": {"cpus": 0.1, "labels": {"role": "other"}},
    "train": {"cpus": 0.2, "labels": {"role": "other"}},
}


def watch(cluster: Cluster, process: subprocess.Popen[str], in_time: Callable[[], None]) -> list[int]:
    """Numbers of nodes beside the head, as they change, until the process ends."""
    seen = [0]
    while process.poll() is None:
        in_time()
        if (now := cluster.nodes()) != seen[-1]:
            seen.append(now)
        time.sleep(0.5)
    return seen


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_pool_at_zero_serves_a_run_and_is_at_zero_again(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    recipe(tmp_path, rounds=1, roles=ROLES)
    with autoscaled(TYPES, idle_minutes=0.1) as cluster:
        assert cluster.nodes() == 0
        command = [*RUN, "tiny.yaml", "--run-dir", str(tmp_path / "run"), "--address", cluster.address]
        process = subprocess.Popen(command, cwd=tmp_path, env=cluster.env, stdout=subprocess.PIPE, text=True)
        seen = watch(cluster, process, limit(500))
        assert process.returncode == 0, process.communicate()[0]
        assert 2 <= max(seen) <= 3
        until(lambda: not cluster.nodes(), "nodes stay after the run", 120, pause_s=0.5)

    placed = {e["actor"].partition("-")[0]: e["labels"]["role"] for e in events(tmp_path / "run") if "labels" in e}
    assert placed == {"search": "search", "reward": "other", "train": "other"}
    assert len(shards(tmp_path / "run")) == 3
