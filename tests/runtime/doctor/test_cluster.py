"""`dav-ray doctor` and the refusal of runs, on clusters that grow from nothing."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.autoscaling import Cluster, NodeType, autoscaled
from tests.support.deadlines import hung, stretched, until

TYPES = {
    "search": NodeType({"CPU": 2}, {"role": "search"}, most=2),
    "train": NodeType({"CPU": 4, "GPU": 1}, {"role": "train"}, most=1),
}
PLACED = ("roles.search.labels.role=search", "roles.reward.labels.role=search", "roles.train.labels.role=train")
pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def pool() -> Iterator[Cluster]:
    """Nothing but a head."""
    with autoscaled(TYPES) as cluster:
        yield cluster


def dav_ray(cluster: Cluster, *words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dav_ray", *words, "--address", cluster.address]
    return subprocess.run(command, env=dict(cluster.env), cwd=folder, capture_output=True, text=True, timeout=hung(240))


def lines(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The doctor's table by subject; `NO ` before the text where it does not fit."""
    rows = [(line[:3].strip(), *line[3:].split("  ", 1)) for line in done.stdout.splitlines()]
    return {subject.strip(): f"{mark} {text.strip()}".strip() for mark, subject, text in rows}


def test_a_pool_at_zero_is_seen_as_what_it_can_become(pool: Cluster) -> None:
    done = dav_ray(pool, "doctor", "digits", *PLACED, "roles.search.cpus=1.5")
    said = lines(done)
    assert done.returncode == 0, done.stdout + done.stderr
    assert said["node type search"] == "2 CPU [role=search]: 2 more may be started"
    assert said["node type train"] == "4 CPU, 1 GPU [role=train]: 1 more may be started"
    assert said["role search"].endswith(
        "2 x 1.5 CPU on nodes with role=search: fits when scaled: 2 nodes of type search"
    )
    assert said["role train"].endswith("fits when scaled: 1 node of type train")
    assert said["all roles"].startswith("fit when scaled: 2 nodes of type search, 1 node of type train")
    assert pool.nodes() == 0  # looking starts nothing


def test_what_will_never_schedule_is_named(pool: Cluster) -> None:
    done = dav_ray(pool, "doctor", "digits", *PLACED, "roles.reward.labels.role=nowhere", "roles.train.gpus=2")
    said = lines(done)
    assert done.returncode == 1
    assert "will never schedule (label role=nowhere: on no node or node type)" in said["role reward"]
    assert "GPU: 2 needed, the largest node or node type with these labels has 1" in said["role train"]
    assert said["role reward"].startswith("NO ") and not said["role search"].startswith("NO ")


def test_a_run_that_will_never_schedule_ends_at_once(pool: Cluster, tmp_path: Path) -> None:
    start = time.monotonic()
    done = dav_ray(
        pool, "run", "digits", *PLACED, "roles.search.labels.role=nowhere", "--run-dir", str(tmp_path / "run")
    )
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("dav-ray: role search: 2 x 0.2 CPU on nodes with role=nowhere will never schedule: ")
    assert time.monotonic() - start < stretched(60) and pool.nodes() == 0


def test_an_own_environment_is_not_tried_without_a_node(pool: Cluster) -> None:
    done = dav_ray(pool, "doctor", "digits", *PLACED, f"reward.python={sys.executable}")
    name = "reward jpeg_compressibility's environment"
    assert lines(done)[name] == "not tried: no node is up that could hold it"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nodes_tell_their_versions_and_start_environments(tmp_path: Path) -> None:
    """Two nodes; environments: one that starts, one whose reward does not build, one of no use; a model is timed."""
    (tmp_path / "broken.py").write_text("class Broken:\n    def __init__(self):\n        raise OSError('no licence')\n")
    with autoscaled({"node": NodeType({"CPU": 2}, {"role": "any"}, least=1)}, idle_minutes=5) as cluster:
        until(lambda: cluster.nodes() >= 1, "no node comes", pause_s=0.5)
        role = "roles.search.labels.role=any"
        done = dav_ray(
            cluster, "doctor", "digits", role, f"reward.python={sys.executable}", "--measure", folder=tmp_path
        )
        said = lines(done)
        assert done.returncode == 0, done.stdout + done.stderr
        assert {"python", "dav_ray", "ray", "torch", "numpy"} <= set(said) and "differs" not in done.stdout
        assert sum(subject.startswith("node ") for subject in said) == 3  # two nodes and a type
        assert "0 more may be started" in said["node type node"]
        assert said["reward jpeg_compressibility's environment"].startswith("starts, in ")
        assert "ms per evaluation" in said["measured"] and "s of search" in said["time per round"]

        wrong = ("reward.kind=broken:Broken", f"reward.python={sys.executable}")
        done = dav_ray(cluster, "doctor", "digits", role, *wrong, folder=tmp_path)
        assert done.returncode == 1
        assert lines(done)["reward Broken's environment"] == "NO does not start: OSError: no licence"

        silent = ("reward.python=/bin/true", "roles.reward.start_timeout_s=10")
        done = dav_ray(cluster, "doctor", "digits", role, *silent)
        name = "reward jpeg_compressibility's environment"
        said = "NO did not start in 10 s; /bin/true has not this Python and ray, or its nodes are taken"
        assert done.returncode == 1 and lines(done)[name] == said
