"""jobs/chaos.py on its masked domain: whoever is killed, the same command ends in the undisturbed run's bytes."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

JOBS = Path(__file__).resolve().parents[1] / "jobs"
ROUNDS = 4


def run(out: Path, domain: str, kinds: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Faults (role, phase) on one cluster, and what became of them."""
    job, plan, watch = (importlib.import_module(name) for name in ("chaos", "chaos_plan", "chaos_watch"))
    faults = [plan.aim(number, 0, 0, domain, *kind) for number, kind in enumerate(kinds, 1)]
    chaos = job.Chaos(out, 0, ROUNDS, faults)
    try:
        chaos.site.start()
        chaos.go(domain, chaos.reference(domain))
    finally:
        chaos.site.end()
    runs = watch.lines(out / "runs.jsonl")
    assert runs and [run["differences"] for run in runs] == [[]] * len(runs)
    return [row for row in chaos.rows if row["counted"]]


@pytest.fixture(autouse=True)
def jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(JOBS))


@pytest.mark.timeout(600)
def test_a_search_worker_a_rank_and_the_driver_are_killed(tmp_path: Path) -> None:
    kinds = [("search", "commit"), ("train", "checkpoint"), ("driver", "publish")]
    counted = run(tmp_path, "masked", kinds)
    assert sorted((row["role"], row["phase"]) for row in counted) == sorted(kinds)
    assert all(row["recovery_s"] >= row["witness_s"] >= 0 for row in counted)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("domain", ["masked", "images"])
def test_a_reward_a_node_and_the_whole_cluster_are_killed(tmp_path: Path, domain: str) -> None:
    kinds = [("node", "search"), ("reward", "report"), ("head", "training"), ("node", "checkpoint")]
    counted = run(tmp_path, domain, kinds)
    assert sorted((row["role"], row["phase"]) for row in counted) == sorted(kinds)
