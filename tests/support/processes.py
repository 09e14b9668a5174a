"""Which processes a test run started, known by a mark in their environment, and the end of those that are left."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.support.deadlines import stretched

MARK = "PROCESS_OF_TEST_RUN"  # in the environment of all that a pytest process starts: which one that is
# of the pytest process, with which they end
HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver", "torch/_inductor/compile_worker")
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


def with_mark(mark: str, value: str) -> list[psutil.Process]:
    """Every process that has it and lives, but this one."""
    wanted, found = f"{mark}={value}".encode(), []
    for number in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            if wanted in Path(f"/proc/{number}/environ").read_bytes().split(b"\0") and int(number) != os.getpid():
                found.append(psutil.Process(int(number)))
    return [process for process in found if lives(process)]


def of_this_run() -> list[psutil.Process]:
    """What tests started, directly or not."""
    found = with_mark(MARK, os.environ[MARK])
    return [process for process in found if not any(name in command(process) for name in HELPERS)]


def actors(title: str) -> list[psutil.Process]:
    """Processes of Ray actors that tests started, by a part of the class's name."""
    return [process for process in of_this_run() if f" ray::{title}" in command(process)]


def lives(process: psutil.Process) -> bool:
    """Not gone, and no zombie that waits for its parent."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def command(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return f"{process.pid} {' '.join(process.cmdline())[:150]}"
    return str(process.pid)


def end_those_left(grace_s: float = 20.0) -> list[str]:
    """Ends what has not ended by itself in this time; the commands of these."""
    told = [command(process) for process in wait_for_end(_left, grace_s)]
    end(of_this_run)
    return told


def wait_for_end(living: Callable[[], list[psutil.Process]], grace_s: float = 20.0) -> list[psutil.Process]:
    """Those that have not ended by themselves in this time."""
    start, left = time.monotonic(), living()
    while left and time.monotonic() - start < stretched(grace_s):
        time.sleep(0.1)
        left = living()
    return left


def _left() -> list[psutil.Process]:
    """Without the agents of a node that is gone: they end by themselves, but only after a minute."""
    end(lambda: [process for process in of_this_run() if _is_agent_alone(process)])
    return of_this_run()


def _is_agent_alone(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        parent = process.parent()
        return any(name in command(process) for name in AGENTS) and (parent is None or parent.name() != "raylet")
    return False


def end(living: Callable[[], list[psutil.Process]], seconds: float = 20.0) -> None:
    """By SIGKILL, until none is left that would start others. AssertionError: some can't be ended."""
    start = time.monotonic()
    while left := living():
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):  # psutil compares the time of birth
                process.kill()
        psutil.wait_procs(left, timeout=2)
        assert time.monotonic() - start < stretched(seconds), f"can't be ended: {[command(p) for p in left]}"
