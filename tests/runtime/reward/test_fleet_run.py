"""Whole runs whose rewards' replicas fail or are few: they cost time, not results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import events, finish, recipe, shards, start, wait_for
from tests.support.tiny import save_tiny
from tests.whole.test_run import REWARDS, _descends_from
from tests.whole.test_run_kinds import SMALL


def metrics(run_dir: Path, role: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["role"] == role]


@pytest.mark.slow
@pytest.mark.timeout(600)  # two runs
def test_a_killed_replica_costs_time_not_results(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    (tmp_path / "own_rewards.py").write_text(REWARDS)
    rewards = [{"kind": "own_rewards:Slow"}, {"kind": "brightness"}]
    command = (str(recipe(tmp_path, rounds=1, reward=rewards)), *SMALL)
    finish(start(tmp_path, *command, "--run-dir", "whole"), 0)
    process = start(tmp_path, *command, "roles.reward.replicas=2", "--run-dir", "killed")
    wait_for(tmp_path / "killed", "chunk_committed", 1, process)
    found = subprocess.run(["pgrep", "-f", "ray::RewardActor"], capture_output=True, text=True).stdout.split()
    mine = [pid for pid in map(int, found) if _descends_from(pid, process.pid)]
    for pid in mine:
        os.kill(pid, signal.SIGKILL)
    finish(process, 0)

    assert shards(tmp_path / "killed") == shards(tmp_path / "whole")
    seen = events(tmp_path / "killed")
    lost = [event for event in seen if event["event"] == "replica_lost"]
    assert {event["reward"] for event in lost} >= {"Slow"}
    placed = [event["actor"] for event in seen if event["event"] == "actor_placed" and event["role"] == "reward"]
    assert len(set(placed)) == len(placed) >= 3
    golden = sorted(path.name for path in (tmp_path / "killed/golden").iterdir())
    assert golden == ["Slow.npz", "brightness.npz"]
    (searched,) = metrics(tmp_path / "whole", "search")
    assert 0 < searched["util/reward"] <= 1 and 0 < searched["util/search"] <= 1
