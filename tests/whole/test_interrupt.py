"""How a driver ends that is told to: at once, with the signal's exit code, whatever it waits for."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dav_ray.runtime.lease import LEASE
from tests.support.deadlines import hung, stretched, until
from tests.support.runs import events, files, finish, masked_recipe, start, wait_for

GRACE_S = 3.0  # after which a stopped job is killed
COMMITTED_S = 10.0


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_driver_whose_actors_start_ends_at_once(tmp_path: Path, number: signal.Signals) -> None:
    """Ray Train starts its own actors in a thread: nobody waits for it, and it must not end the process with 1."""
    process = start(tmp_path, str(masked_recipe(tmp_path)), "--run-dir", "run")
    wait_for(tmp_path / "run", "driver_started", 1, process)
    time.sleep(1.0)
    told = time.monotonic()
    process.send_signal(number)
    process.wait(hung(60))
    assert time.monotonic() - told < stretched(GRACE_S)
    assert "type the same command again" in finish(process, 128 + number)


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
        until(lambda moment=moment: reached(run, moment), moment, 400, process=process, pause_s=0.02)
        told = time.monotonic()
        process.send_signal(number)
        process.wait(hung(60))
        assert time.monotonic() - told < stretched(COMMITTED_S), moment
        assert "type the same command again" in finish(process, 128 + number), moment
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


def test_a_process_with_a_thread_inside_ray_ends_without_more_ado() -> None:
    """Ray's shutdown under a thread that is inside it may end the process by a signal, and hide the error."""
    code = """
import atexit, threading, time
from dav_ray.cli.failures import exit_codes
from dav_ray import errors
from dav_ray.runtime import interrupt

atexit.register(print, "Ray's own end")
if {entangled}:
    threading.Thread(target=time.sleep, args=(60,), name=interrupt.TRAINER_THREAD, daemon=True).start()
with exit_codes("runs/a"):
    raise errors.RunError("storage", "no space left")
"""
    for entangled in (True, False):
        command = [sys.executable, "-c", code.format(entangled=entangled)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=hung(50))
        assert "dav-ray: storage: no space left" in done.stderr
        assert done.returncode == 1
        assert ("Ray's own end" in done.stdout) != entangled
