"""Whole runs in which processes stop without dying (SIGSTOP), or a reward never answers: healed, or named in time."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.deadlines import stretched, until
from tests.support.runs import events, finish, masked_model, shards, start, wait_for
from tests.whole.test_run import _descends_from

OWN = """
import time

class Slow:
    differentiable = False

    def __init__(self, seconds):
        self.seconds = seconds

    def __call__(self, samples, conditions):
        time.sleep(self.seconds)
        return (samples == 1).double().mean(1)
"""
ADAPTERS = "policy/v0001/adapters.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("hung")
    (place / "own_rewards.py").write_text(OWN)
    settings: dict[str, Any] = {
        "rounds": 1,
        "model": {"kind": "masked", "path": masked_model(place)},
        "prompts": ["", "fixed=3:TATA"],
        "reward": {"kind": "own_rewards:Slow", "args": {"seconds": 1.0}},
        "search": {"candidates": 2, "alpha": 0.02, "steps": 3, "trajectories": 12, "chunk": 1},
        "mstep": {"batch_size": 16, "lora": {"targets": ["convs"]}},
        "evaluate": {"samples": 4, "batch": 4, "kl_samples": 0},
        "roles": {name: {"replicas": 1, "cpus": 0.1} for name in ("reward", "train")},
    }
    settings["roles"]["search"] = {"replicas": 2, "cpus": 0.1}
    (place / "tiny.yaml").write_text(yaml.safe_dump(settings))
    return place


def pids(title: str, process: subprocess.Popen[str]) -> Iterator[int]:
    """Of actors of a run, which are children of the raylet that its driver started."""
    found = subprocess.run(["pgrep", "-f", f"^ray::{title}"], capture_output=True, text=True).stdout.split()
    return (pid for pid in map(int, found) if _descends_from(pid, process.pid))


@pytest.mark.slow
@pytest.mark.timeout(1200)  # two runs
def test_a_worker_a_replica_and_a_rank_that_stop_cost_time_not_results(folder: Path) -> None:
    finish(start(folder, "tiny.yaml", "--run-dir", "whole"), 0, 400)
    limits = [f"roles.{role}.call_timeout_s={seconds}" for role, seconds in (("search", 25), ("reward", 8))]
    run, process = (
        folder / "hung",
        start(folder, "tiny.yaml", *limits, "roles.train.call_timeout_s=20", "--run-dir", "hung"),
    )
    wait_for(run, "chunk_committed", 1, process)
    stopped = [next(pids("RewardActor", process)), next(pids("SearchActor", process))]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    placed = ("train", "actor_placed")
    until(lambda: placed in [(e.get("role"), e["event"]) for e in events(run)], "no rank", 300, process=process)
    assert len([event for event in events(run) if event["event"] == "chunk_committed"]) < 12  # it waits for rows
    stopped += pids("RayTrainWorker", process)
    os.kill(stopped[-1], signal.SIGSTOP)
    finish(process, 0, 600)

    assert shards(run) == shards(folder / "whole") and len(shards(run)) == 12
    assert (run / ADAPTERS).read_bytes() == (folder / "whole" / ADAPTERS).read_bytes()
    seen = [event["event"] for event in events(run)]
    assert {"replica_stuck", "worker_hung", "train_hung", "train_restarted"} <= set(seen)
    assert len(stopped) == 3 and not any(Path(f"/proc/{pid}").exists() for pid in stopped)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_reward_that_never_answers_is_named_in_time(folder: Path) -> None:
    words = ["reward.args.seconds=1e6", "roles.reward.call_timeout_s=5", "roles.search.replicas=1"]
    process = start(folder, "tiny.yaml", *words, "--run-dir", "never")
    wait_for(folder / "never", "actor_placed", 2, process)
    begun = time.monotonic()
    output = finish(process, 1, 400)
    (line,) = [line for line in output.splitlines() if line.startswith("dav-ray: ")]
    assert "reward: Slow: 3 replicas gave no answer in 5 s (roles.reward.call_timeout_s)" in line
    assert time.monotonic() - begun < stretched(200)
    assert "replica_stuck" in [event["event"] for event in events(folder / "never")]
    assert not (folder / "never/quarantine").exists()  # nothing is wrong with the data
