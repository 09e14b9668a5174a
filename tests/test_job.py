"""`ray job submit` of jobs/align.py against a cluster started with `ray start --head`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runs import events, recipe, shards
from tests.tiny import save_tiny

ROOT = Path(__file__).resolve().parents[1]
RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A head of its own with token authentication; only its processes are ended."""
    home = tmp_path_factory.mktemp("ray")
    token = home / "token"
    token.write_text("0123456789abcdef" * 4)
    env = {
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    port = free_port()
    command = [RAY, "start", "--head", "--block", f"--port={free_port()}", f"--dashboard-port={port}"]
    command += [
        "--num-cpus=2",
        "--min-worker-port=21000",
        "--max-worker-port=21999",
        f"--ray-client-server-port={free_port()}",
        f"--dashboard-agent-listen-port={free_port()}",  # the default may be another Ray's on this machine
    ]
    with open(home / "head.log", "w") as log:
        head = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=home)
    try:
        _wait_for_port(port, head, home / "head.log")
        yield {**env, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}"}
    finally:
        head.terminate()  # `ray start --block` takes its own processes down with it
        head.wait(60)


def _wait_for_port(port: int, head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert head.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(f"no dashboard: {log.read_text()}")


def submit(env: dict[str, str], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """From a folder that holds jobs/ and nothing else, as `--working-dir .` would be from a clone."""
    command = [RAY, "job", "submit", "--working-dir", str(folder), "--", sys.executable, "jobs/align.py", *words]
    for _ in range(20):
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
        if "No available agent" not in done.stderr:  # the node's agent comes up after the dashboard
            break
        time.sleep(3)
    return done


def test_a_submitted_job_aligns(cluster: dict[str, str], tmp_path: Path) -> None:
    save_tiny(tmp_path)
    upload = tmp_path / "upload"
    (upload / "jobs").mkdir(parents=True)
    (upload / "jobs/align.py").write_text((ROOT / "jobs/align.py").read_text())
    (upload / "tiny.yaml").write_text(recipe(tmp_path, rounds=1).read_text())

    refused = submit(cluster, upload, "tiny.yaml", "--run-dir", "relative")
    assert refused.returncode == 1 and "--run-dir relative" in refused.stdout + refused.stderr

    run_dir = tmp_path / "job"
    done = submit(cluster, upload, "tiny.yaml", "--run-dir", str(run_dir))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "round 1/1" in done.stdout or "round 1, aligned" in done.stdout
    assert json.loads((run_dir / "manifest.json").read_text())["phase"] == "done"
    assert len(shards(run_dir)) == 3 and (run_dir / "report.html").exists()
    assert [event["round"] for event in events(run_dir) if event["event"] == "chunk_committed"] == [1, 1, 1]
