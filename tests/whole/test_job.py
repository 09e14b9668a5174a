"""`ray job submit` of jobs/align.py against a cluster started with `ray start --head`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.clusters import attempts, free_port
from tests.support.deadlines import hung, until
from tests.support.places import ROOT
from tests.support.runs import events, recipe, shards
from tests.support.tiny import save_tiny

RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A head of its own with token authentication; only its processes are ended."""
    # jobs look there for "auto": another Ray of this machine writes its address to the default place
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as files:
        yield from _head(tmp_path_factory.mktemp("ray"), files)


def _head(home: Path, files: str) -> Iterator[dict[str, str]]:
    token = home / "token"
    token.write_text("0123456789abcdef" * 4)
    env = {
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": files,
    }
    head, port = attempts(lambda: _started(home / "head.log", env))
    try:
        yield {**env, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}"}
    finally:
        head.terminate()  # `ray start --block` takes its own processes down with it
        head.wait(hung(60))


def _started(file: Path, env: dict[str, str]) -> tuple[subprocess.Popen[bytes], int]:
    """A head, and the port of its dashboard."""
    port = free_port()
    command = [RAY, "start", "--head", "--block", f"--port={free_port()}", f"--dashboard-port={port}"]
    command += [
        "--num-cpus=4",
        "--min-worker-port=21000",
        "--max-worker-port=21999",
        f"--ray-client-server-port={free_port()}",
        f"--dashboard-agent-listen-port={free_port()}",  # the default may be another Ray's on this machine
    ]
    with open(file, "w") as log:
        head = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=file.parent)
    _wait_for_port(port, head, file)
    return head, port


def _wait_for_port(port: int, head: subprocess.Popen[bytes], log: Path) -> None:
    def there() -> bool:
        assert head.poll() is None, log.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    until(there, lambda: f"no dashboard: {log.read_text()}", 90)


REWARD = """
import os
import time


class Slow:
    \"\"\"The mean value of an image, raised by a number that the job's environment tells, after a while.\"\"\"

    differentiable = False

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, samples, conditions):
        time.sleep(self.seconds)
        return samples.mean((1, 2, 3)) + float(os.environ["SHIFT"])
"""


def upload(folder: Path, **changes: Any) -> Path:
    """A folder that holds jobs/, a recipe, a model and a reward and nothing else, as `--working-dir .` would be from a
    clone."""
    place = folder / "upload"
    (place / "jobs").mkdir(parents=True)
    save_tiny(place)
    (place / "jobs/align.py").write_text((ROOT / "jobs/align.py").read_text())
    (place / "slow.py").write_text(REWARD)
    (place / "tiny.yaml").write_text(recipe(folder, rounds=1, **changes).read_text())
    return place


def job(env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([RAY, "job", *words], env=env, capture_output=True, text=True, timeout=hung(480))


def submit(env: dict[str, str], folder: Path, *words: str, options: Sequence[str] = ()) -> str:
    """What `ray job submit` said; options: of its own."""
    for _ in range(20):
        done = job(
            env,
            *("submit", "--working-dir", str(folder), *options, "--", sys.executable, "jobs/align.py", *words),
        )
        if "No available agent" not in done.stderr:  # the node's agent comes up after the dashboard
            break
        time.sleep(3)
    return f"exit code {done.returncode}\n{done.stdout}{done.stderr}"


@pytest.mark.slow
def test_a_submitted_job_aligns(cluster: dict[str, str], tmp_path: Path) -> None:
    folder = upload(tmp_path)
    refused = submit(cluster, folder, "tiny.yaml", "--run-dir", "relative")
    assert refused.startswith("exit code 1") and "--run-dir relative" in refused

    run_dir = tmp_path / "job"
    said = submit(cluster, folder, "tiny.yaml", "--run-dir", str(run_dir))
    assert said.startswith("exit code 0"), said
    assert "round 1/1" in said or "round 1, aligned" in said
    assert json.loads((run_dir / "manifest.json").read_text())["phase"] == "done"
    assert len(shards(run_dir)) == 3 and (run_dir / "report.html").exists()
    assert [event["round"] for event in events(run_dir) if event["event"] == "chunk_committed"] == [1, 1, 1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stopped_job_goes_on_under_another_id(cluster: dict[str, str], tmp_path: Path) -> None:
    """Stopped in the middle of the search; the driver ends by itself, before it would be killed after 3 s."""
    search = {"candidates": 2, "alpha": 0.01, "steps": 4, "guidance_scale": 2.0, "trajectories": 60, "chunk": 3}
    reward = {"kind": "slow:Slow", "args": {"seconds": 0.3}}
    folder = upload(tmp_path, search=search, reward=reward)
    environment = json.dumps({"env_vars": {"SHIFT": "1000"}})

    def start(name: str, run_dir: Path) -> None:
        options = ("--no-wait", "--submission-id", name, "--runtime-env-json", environment)
        said = submit(cluster, folder, "tiny.yaml", "--run-dir", str(run_dir), options=options)
        assert said.startswith("exit code 0"), said

    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    start("first", stopped)
    log = answer(lambda: job(cluster, "logs", "first").stdout, lambda text: "search: chunk" in text)
    assert "round 1/1 | search: chunk" in log
    assert job(cluster, "stop", "first").returncode == 0
    assert "stopped" in job(cluster, "status", "first").stdout.lower()
    answer(lambda: job(cluster, "logs", "first").stdout, lambda text: "type the same command again" in text)
    before = committed(stopped)
    manifest = json.loads((stopped / "manifest.json").read_text())
    assert len(before) <= len(manifest["shards"]) < 20 and manifest["phase"] == "search"

    (folder / "note.txt").write_text("another upload, which is unpacked elsewhere")
    start("second", stopped)
    start("undisturbed", whole)
    for name in ("second", "undisturbed"):
        said = answer(
            lambda name=name: job(cluster, "status", name).stdout.lower(),
            lambda text: "succeeded" in text or "failed" in text,
        )
        assert "succeeded" in said, job(cluster, "logs", name).stdout
    assert len(before) > 0 and len(set(committed(stopped))) == len(committed(stopped)) >= 19
    assert shards(stopped) == shards(whole) and len(shards(whole)) == 20
    found = json.loads((whole / "metrics.jsonl").read_text().splitlines()[1])
    assert 1000.0 <= found["reward/mean"] <= 1001.0  # what --runtime-env-json says is known to the reward's actor


def committed(run_dir: Path) -> list[int]:
    """Chunks, in the order in which events.jsonl names them."""
    return [event["chunk"] for event in events(run_dir) if event["event"] == "chunk_committed"]


def answer(ask: Callable[[], str], true: Callable[[str], bool]) -> str:
    """The first answer that is as it should be."""
    said = [""]

    def as_it_should() -> bool:
        said[0] = ask()
        return true(said[0])

    until(as_it_should, lambda: said[0], 400, pause_s=0.5)
    return said[0]
