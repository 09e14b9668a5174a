"""`cluster/local.sh`: four nodes on this machine, actors placed by label, everything gone afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.test_files import CLUSTER, ROOT
from tests.support.clusters import free_port
from tests.support.deadlines import hung, limit

PLACE = """
import ray
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
@ray.remote(num_cpus=0)
def where():
    return ray.get_runtime_context().get_node_labels()
for selector in {"role": "reward"}, {"role": "search", "market": "spot"}:
    labels = ray.get(where.options(label_selector=selector).remote(), timeout=300)
    assert selector.items() <= labels.items(), labels
print("placed", sum(node["Alive"] for node in ray.nodes()))
"""


@pytest.fixture
def local_cluster() -> Iterator[dict[str, str]]:
    """`cluster/local.sh up`; the environment in which ray finds it."""
    with tempfile.TemporaryDirectory(prefix="dav-", dir="/tmp") as state:  # socket paths must be short
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        ports = {"DAV_RAY_LOCAL_PORT": str(20000 + free_port() % 10000), "DAV_RAY_LOCAL_TIMEOUT": "240"}
        env = {**os.environ, "PATH": path, "DAV_RAY_LOCAL_DIR": f"{state}/c", **ports}
        try:
            subprocess.run([str(CLUSTER / "local.sh"), "up"], env=env, check=True, timeout=hung(280))
            said = subprocess.run([str(CLUSTER / "local.sh"), "env"], env=env, capture_output=True, text=True).stdout
            yield {**env, **dict(line.removeprefix("export ").split("=", 1) for line in said.splitlines())}
        finally:
            subprocess.run([str(CLUSTER / "local.sh"), "down"], env=env, check=True, timeout=hung(120))
        mine = [line for line in _processes() if state in line]
        assert mine == []


def _processes() -> list[str]:
    return subprocess.run(["ps", "-eo", "pid,args", "-ww"], capture_output=True, text=True).stdout.splitlines()


@pytest.mark.slow
def test_local_cluster_places_by_label(local_cluster: dict[str, str]) -> None:
    def run(*words: str) -> str:
        done = subprocess.run(words, env=local_cluster, capture_output=True, text=True, timeout=hung(120), cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    in_time = limit(60, "no GPUs")
    while "/3.0 GPU" not in (status := run(str(CLUSTER / "local.sh"), "status")):  # the monitor looks every few seconds
        in_time()
    assert all(f"{node} up" in status for node in ("head", "a100", "l4", "reward"))
    assert run(sys.executable, "-c", PLACE).strip() == "placed 4"
    roles = [
        "roles.search.labels.role=search",
        "roles.reward.labels.role=reward",
        "roles.train.labels.accelerator=a100",
    ]
    run(sys.executable, "-m", "dav_ray", "doctor", "digits", *roles, "--address", local_cluster["RAY_ADDRESS"])
    stranger = {**local_cluster, "RAY_AUTH_TOKEN_PATH": "", "RAY_AUTH_TOKEN": "0" * 64}
    refused = subprocess.run(["ray", "status"], env=stranger, capture_output=True, text=True, timeout=hung(120))
    assert refused.returncode != 0
