"""jobs/chaos on its masked domain: whoever is killed, the same command ends in the undisturbed run's bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from jobs.chaos import plan, study, watch

ROUNDS = 3


def run(out: Path, domain: str, kinds: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Faults (role, phase) on one cluster, and what became of them."""
    faults = [plan.aim(number, 0, 0, domain, *kind) for number, kind in enumerate(kinds, 1)]
    chaos = study.Chaos(out, 0, ROUNDS, faults)
    try:
        chaos.site.start()
        chaos.go(domain, chaos.reference(domain))
    finally:
        chaos.site.end()
    runs = watch.lines(out / "runs.jsonl")
    assert runs and [run["differences"] for run in runs] == [[]] * len(runs)
    return [row for row in chaos.rows if row["counted"]]


@pytest.mark.slow  # a cluster of three nodes and two runs; by default a run on an embedded Ray loses the same ones
@pytest.mark.timeout(1200)
def test_a_search_worker_and_a_rank_are_killed(tmp_path: Path) -> None:
    """On a cluster of several nodes. tests/whole/test_run_masked.py kills them, and the driver, on an embedded Ray."""
    kinds = [("search", "commit"), ("train", "checkpoint")]
    counted = run(tmp_path, "masked", kinds)
    assert sorted((row["role"], row["phase"]) for row in counted) == sorted(kinds)
    assert all(row["recovery_s"] >= row["witness_s"] >= 0 for row in counted)


@pytest.mark.slow  # four runs, of which one dies with its cluster
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("domain", ["masked", "images"])
def test_a_reward_a_node_the_driver_and_the_whole_cluster_are_killed(tmp_path: Path, domain: str) -> None:
    kinds = [("node", "search"), ("reward", "report"), ("head", "training"), ("node", "checkpoint")]
    kinds += [("driver", "publish")]
    counted = run(tmp_path, domain, kinds)
    assert sorted((row["role"], row["phase"]) for row in counted) == sorted(kinds)
