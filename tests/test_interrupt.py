"""How a driver ends that is told to: at once, with the signal's exit code, whatever it waits for."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.runs import finish, recipe, start, wait_for
from tests.tiny import save_tiny

GRACE_S = 3.0  # after which a stopped job is killed


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
    assert time.monotonic() - told < GRACE_S
    assert "the same command goes on" in finish(process, 128 + number)
