"""jobs/endurance: what it measures is measured right, and a run holds no more than before after more rounds."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.endurance import probe as seen
from jobs.endurance import study as job
from tests.support.places import JOBS


def test_the_slope_and_its_error_are_least_squares() -> None:
    assert job.slope([(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]) == pytest.approx((2.0, 0.0))
    # residuals (1, -2, 1)/6 about a slope of 1/2: sqrt(6/36 / 1 / 2)
    rise, error = job.slope([(0.0, 0.0), (1.0, 0.0), (2.0, 1.0)])
    assert (rise, error) == pytest.approx((0.5, math.sqrt(1 / 12)))
    assert math.isnan(job.slope([(0.0, 0.0), (1.0, 1.0)])[0])


def test_rounds_before_settling_and_after_the_end_do_not_count() -> None:
    def sample(rounds: int, memory_mb: float, *more: str) -> dict:
        processes = {kind: {"memory_mb": memory_mb} for kind in ("driver", *more)}
        return {"rounds": rounds, "files": 10 * rounds, "store_mb": None, "processes": processes}

    samples = [sample(0, 1.0), sample(50, 5.0), sample(51, 6.0, "IDLE"), sample(60, 7.0), sample(100, 0.0)]
    found = job.series(samples, 50, 100)
    assert found["memory_mb driver"] == found["memory_mb in all"][:1] + [(0.51, 6.0), (0.6, 7.0)]
    assert [x for x, _ in found["files"]] == [0.5, 0.51, 0.6]
    assert "memory_mb IDLE" not in found and "store_mb" not in found


def test_cpu_seconds_are_those_of_each_half() -> None:
    used = [(0, 9.0), (10, 10.0), (20, 12.0), (40, 20.0), (50, 99.0)]
    samples = [
        {"rounds": rounds, "processes": {"driver": {"cpu_s": cpu_s}, "raylet": {"cpu_s": 0.0}}}
        for rounds, cpu_s in used
    ]
    assert job.cpu_seconds(samples, 10, 50) == {"driver": [0.2, 0.4], "in all": [0.2, 0.4]}


def test_what_a_process_and_its_children_hold() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "x = b'x' * (64 << 20); print(flush=True); input()"], stdin=-1, stdout=-1
    )
    try:
        assert child.stdout is not None and child.stdout.readline()
        assert {str(os.getpid()), str(child.pid)} <= set(seen.family(os.getpid()))
        held = seen.probe(child.pid)["driver"]
        assert held["processes"] == held["threads"] == 1 and held["descriptors"] == 3
        assert 64 <= held["memory_mb"] < 100
    finally:
        child.kill()
        child.wait()
    assert seen.probe(child.pid) == {}


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (["ray::search-0-1:SearchActor.search"], "SearchActor"),
        (["ray::RayTrainWorker"], "RayTrainWorker"),
        (["ray::IDLE"], "IDLE"),
        (["/x/ray/raylet/raylet", "--python_worker_command=python setup_worker.py default.py x"], "raylet"),
        (["/x/python", "-u", "/x/ray/dashboard/dashboard.py", "--host=127.0.0.1"], "dashboard.py"),
        ([], "ended"),
    ],
)
def test_processes_are_named_by_what_they_run(line: list[str], kind: str) -> None:
    assert seen.kind(line) == kind


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_short_long_run_grows_by_little(tmp_path: Path) -> None:
    """Bounds are those of a machine that has other work: what grew by 95 MB per 100 rounds is noticed, 5 MB are not."""
    command = [sys.executable, str(JOBS / "long_run.py"), "--rounds", "24", "--settle", "8", "--every", "0.5"]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "long_run.json").read_text())
    memory = {name: row for name, row in found["slopes"].items() if name.startswith("memory_mb")}
    assert {"memory_mb driver", "memory_mb SearchActor", "memory_mb RayTrainWorker"} <= set(memory)
    grew = {name: row for name, row in memory.items() if row["slope"] - 2 * row["error"] > 60}
    assert not {name for name in grew if name not in ("memory_mb in all", "memory_mb driver", "memory_mb SearchActor")}
    for name in ("threads driver", "descriptors driver", "descriptors SearchActor", "descriptors RayTrainWorker"):
        assert found["slopes"][name]["last"] <= found["slopes"][name]["first"] + 8
    assert found["slopes"]["store_mb"]["last"] < 5
    assert "**What a run holds**" in done.stdout
