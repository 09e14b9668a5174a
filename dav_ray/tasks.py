"""Work that is done once where a role's actors would be, with what one of them has."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

from dav_ray.interrupt import check
from dav_ray.placement import actor_options
from dav_ray.roles import Role

POLL_S = 0.2


def run_as(role: Role, work: Callable[..., Any], *args: Any, timeout_s: float) -> Any:
    """What `work` returns, in a process of its own. TimeoutError where it does not in time; Ray's error else."""
    options = actor_options(role, "", "")
    for name in ("name", "namespace", "max_restarts", "max_task_retries"):
        del options[name]
    task: Any = ray.remote(max_calls=1)(work)  # the process ends after it, and frees what it took
    ref = task.options(**options, max_retries=0).remote(*args)
    deadline = time.monotonic() + timeout_s
    while not ray.wait([ref], timeout=POLL_S)[0]:
        check()
        if time.monotonic() > deadline:
            ray.cancel(ref, force=True)
            raise TimeoutError
    return ray.get(ref)
