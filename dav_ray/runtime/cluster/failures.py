"""What an actor or task raised, in the words of this package."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any, Literal

import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dav_ray.errors import DavRayError, DeviceError, RunError, UserError

TRACE = 8000  # characters of a traceback that are kept, the last ones


def unwrap(error: BaseException) -> BaseException:
    """The exception behind what `ray.get` raised."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(error, exceptions.RayTaskError) and isinstance(cause, BaseException) else error


Fault = Literal["infrastructure", "device", "data"]


def classify(error: BaseException) -> tuple[Fault, BaseException]:
    """Whose fault it is that a call of an actor has no result, and the exception behind what `ray.get` raised.

    infrastructure: the process, its node or what it needed of the cluster is gone, another try may go well; device: so
    it is with this process' GPU, another process may do better; data: the code was run and raised, so that another try
    would raise the same."""
    cause = unwrap(error)
    if isinstance(cause, DeviceError):
        return "device", cause
    return ("infrastructure" if isinstance(cause, exceptions.RayError) else "data"), cause


def died(error: BaseException) -> bool:
    """Whether an actor is gone through no fault of its own: its constructor did not raise."""
    return isinstance(error, exceptions.RayActorError) and not error.actor_init_failed


def start_failure(role: str, name: str, error: BaseException) -> DavRayError:
    """Why an actor of the role did not start."""
    cause = unwrap(error)
    if isinstance(cause, DavRayError):
        return cause
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    mark = f"{UserError.__module__}.{UserError.__name__}: "
    for number, line in enumerate(lines):
        if line.startswith(mark):  # an actor's constructor raised it: Ray keeps the words alone
            return UserError([line.removeprefix(mark), *lines[number + 1 :]])
    failure = RunError(role, f"{name} did not start: {lines[-1] if lines else type(cause).__name__}")
    failure.trace = str(error)[-TRACE:]
    return failure


def end_process(node: str, pid: int) -> None:
    """Have a process of Ray's on a node (an id) killed, whatever it does; nobody waits for it."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    kill: Any = ray.remote(_kill).options(num_cpus=0, scheduling_strategy=there, max_retries=0)
    kill.remote(pid)


def _kill(pid: int) -> None:
    with contextlib.suppress(OSError):  # it is gone
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::"):
            os.kill(pid, signal.SIGKILL)


def last_line(error: BaseException) -> str:
    """What an error says in the end, without Ray's account of where it was."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
