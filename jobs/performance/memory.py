"""How much more memory some work takes at its peak."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
from collections.abc import Callable
from typing import TypeVar

import psutil
import torch

Result = TypeVar("Result")
EVERY_S = 0.002


def peak_mb(work: Callable[[], Result], device: str) -> tuple[float, Result]:
    """MB of the process (of the GPU) above what it held before, as seen every 2 ms; and what the work gave."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)  # what the process keeps for later counts as taken
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before, result = torch.cuda.memory_allocated(), work()
        return (torch.cuda.max_memory_allocated() - before) / 1e6, result
    process, over, seen = psutil.Process(), threading.Event(), [0]
    before = process.memory_info().rss

    def watch() -> None:
        while not over.wait(EVERY_S):
            seen.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = work()
    finally:
        over.set()
        watcher.join()
    return max(0, max(seen) - before) / 1e6, result
