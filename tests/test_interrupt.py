"""How a driver ends that is told to: at once, with the signal's exit code, whatever it waits for."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dav_ray.lease import LEASE
from tests.runs import events, files, finish, masked_recipe, recipe, start, wait_for
from tests.support.deadlines import stretched
from tests.tiny import save_tiny

GRACE_S = 3.0  # after which a stopped job is killed
COMMITTED_S = 10.0


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_driver_whose_actors_start_ends_at_once(tmp_path: Path, number: signal.Signals) -> None:
    """Ray Train starts its own actors in a thread: nobody waits for it, and it must not end the process with 1."""
    save_tiny(tmp_path)
    process = start(tmp_path, str(recipe(tmp_path)), "--run-dir", "run")
    wait_for(tmp_path / "run", "driver_started", 1, process)
    time.sleep(1.0)
    told = time.monotonic()
    process.send_signal(number)
    process.wait(60)
    assert time.monotonic() - told < stretched(GRACE_S)
    assert "the same command goes on" in finish(process, 128 + number)


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_again_and_again_has_the_bits_of_an_undisturbed_one(
    tmp_path: Path, number: signal.Signals
) -> None:
    """While Ray starts, in the search, in training, in the evaluation."""
    mstep = {"learning_rate": 0.01, "batch_size": 16, "epochs": 60, "lora": {"targets": ["convs"]}}
    words = [str(masked_recipe(tmp_path, mstep=mstep)), "--run-dir"]
    finish(start(tmp_path, *words, "whole"), 0, 600)
    run = tmp_path / "run"
    for moment in ("start", "search", "fit", "evaluate"):
        process = start(tmp_path, *words, "run")
        wait_until(lambda moment=moment: reached(run, moment), process)
        told = time.monotonic()
        process.send_signal(number)
        process.wait(60)
        assert time.monotonic() - told < stretched(COMMITTED_S), moment
        assert "the same command goes on" in finish(process, 128 + number), moment
        assert json.loads((run / LEASE).read_text())["holder"] is None, moment
    finish(start(tmp_path, *words, "run"), 0, 600)
    for pattern in ("policy/*/*", "buffer/*/*.parquet"):
        assert files(run, pattern) == files(tmp_path / "whole", pattern) != {}


def reached(run: Path, moment: str) -> bool:
    """start: the driver has the lease, and nothing else is there."""
    if moment == "start":
        return (run / LEASE).exists()
    if moment == "search":
        return sum(event["event"] == "chunk_committed" for event in events(run)) >= 1
    names = [event["event"] for event in events(run)]
    if moment == "evaluate":
        return "policy_written" in names
    manifest = json.loads((run / "manifest.json").read_text())
    return manifest["phase"] == "fit" and names[-1] != "run_failed"


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 400
    while not true():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_process_with_a_thread_inside_ray_ends_without_more_ado() -> None:
    """Ray's shutdown under a thread that is inside it may end the process by a signal, and hide the error."""
    code = """
import atexit, threading, time
from dav_ray import cli, errors, interrupt

atexit.register(print, "Ray's own end")
if {entangled}:
    threading.Thread(target=time.sleep, args=(60,), name=interrupt.TRAINER_THREAD, daemon=True).start()
with cli.exit_codes("runs/a"):
    raise errors.RunError("storage", "no space left")
"""
    for entangled in (True, False):
        command = [sys.executable, "-c", code.format(entangled=entangled)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=50)
        assert "dav-ray: storage: no space left" in done.stderr
        assert done.returncode == 1
        assert ("Ray's own end" in done.stdout) != entangled
