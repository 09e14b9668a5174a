"""`report.html` after every round, written by a task on the driver's node: the driver itself never waits for it.

One task at a time: a round that ends while the page of an earlier one is still being written is shown by the next one.
A report that can't be written ends no run: an event and a line tell of it.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dav_ray.errors import DavRayError
from dav_ray.run_dir.records import RunLog
from dav_ray.runtime.cluster.failures import unwrap
from dav_ray.runtime.watch.progress import Progress

LAST_S = 60.0  # longest wait for a page that is being written, before the last one is


class RoundReports:
    """place: the run directory, as every process can use it."""

    def __init__(self, place: str, log: RunLog, progress: Progress) -> None:
        self._place, self._log, self._progress = place, log, progress
        self._writing: Any = None  # the task's result: seconds
        self._told = False  # that it can't be written: once is enough

    def update(self) -> None:
        """A round was evaluated: have the page written anew, unless an earlier one still is."""
        if self._done(0.0):
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            task: Any = ray.remote(_write).options(num_cpus=0, max_retries=0, scheduling_strategy=here)
            self._writing = task.remote(self._place)

    def end(self) -> None:
        """No page is being written any more: the caller may write the last one."""
        if not self._done(LAST_S):
            with contextlib.suppress(exceptions.RayError):
                ray.cancel(self._writing, force=True)
            self._writing = None

    def _done(self, timeout_s: float) -> bool:
        """Whether nothing is being written; an event says what became of the last page."""
        if self._writing is None:
            return True
        ready, _ = ray.wait([self._writing], timeout=timeout_s)
        if not ready:
            return False
        self._writing = None
        try:
            self._log.event("report_written", seconds=round(ray.get(ready[0]), 3))
        except exceptions.RayTaskError as error:
            self._failed(unwrap(error))
        except exceptions.RayError as error:
            self._failed(error)
        return True

    def _failed(self, error: BaseException) -> None:
        if not self._told:
            tell_failure(self._place, error, self._log, self._progress)
        self._told = True


def write_last(place: str, log: RunLog, progress: Progress) -> str:
    """Write the page in this process; returns where it is, or how it can be had."""
    from dav_ray.report.page import write_report

    try:
        return write_report(place)
    except Exception as error:  # whatever it is, the run is done
        tell_failure(place, error, log, progress)
        return f"dav-ray report {place}"


def tell_failure(place: str, error: BaseException, log: RunLog, progress: Progress) -> None:
    cause = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    with contextlib.suppress(DavRayError, OSError):
        log.event("report_failed", cause=cause)
    progress.say(f"the report could not be written ({cause}); dav-ray report {place} tries again")


def _write(place: str) -> float:
    from dav_ray.report.page import write_report

    start = time.monotonic()
    write_report(place)
    return time.monotonic() - start
