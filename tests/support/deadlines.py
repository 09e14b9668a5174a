"""Limits of time that hold on a loaded machine too: one place decides by how much they stretch."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from typing import Any

MOST = 10.0  # a machine on which everything takes longer than that is broken, not loaded


def load_factor() -> float:
    """How many processes want each CPU: 1 on a quiet machine, at most 10."""
    return min(MOST, max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))


def stretched(seconds: float) -> float:
    """A limit for what takes less than `seconds` on a quiet machine: longer by the load."""
    return seconds * load_factor()


def hung(seconds: float) -> float:
    """The limit after which something that never took `seconds` is given up. It is set before the load is known that
    comes meanwhile, and says nothing about speed: twice as long as `stretched`."""
    return 2 * stretched(seconds)


def until(
    true: Callable[[], Any],
    what: str | Callable[[], str],
    seconds: float = 60.0,
    *,
    process: subprocess.Popen[Any] | None = None,
    pause_s: float = 0.1,
) -> float:
    """Waits for a condition, at most `stretched(seconds)`, and returns how long it took.

    what: the message where it does not come; process: one that must not end meanwhile.
    """
    start = time.monotonic()
    while not true():
        assert process is None or process.poll() is None, process.communicate()[0]
        assert time.monotonic() - start < stretched(seconds), what if isinstance(what, str) else what()
        time.sleep(pause_s)
    return time.monotonic() - start


def limit(seconds: float, what: str = "it takes too long") -> Callable[[], None]:
    """A check for loops that have something else to do: it fails `stretched(seconds)` after now."""
    start = time.monotonic()

    def check() -> None:
        assert time.monotonic() - start < stretched(seconds), what

    return check
