"""Limits of time that hold on a loaded machine too: one place decides by how much they stretch."""

from __future__ import annotations

import os
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


def until(true: Callable[[], Any], what: str, seconds: float = 60.0) -> float:
    """Waits for a condition, at most `stretched(seconds)`; `what` is the message. Returns how long it took."""
    start = time.monotonic()
    while not true():
        assert time.monotonic() - start < stretched(seconds), what
        time.sleep(0.1)
    return time.monotonic() - start
