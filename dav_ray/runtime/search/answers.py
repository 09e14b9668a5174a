"""What the call of a search worker has come to: its reply, or why there is none."""

from __future__ import annotations

from typing import Any

import ray
from ray import exceptions

from dav_ray.errors import DavRayError, DeviceError, RunError, Stopped
from dav_ray.runtime.cluster.failures import classify, unwrap
from dav_ray.runtime.search.calls import Call, Calls
from dav_ray.runtime.search.process import Reply
from dav_ray.runtime.search.workers import ANSWER_S

WAIT_S = 0.5


class Left(Exception):
    """No result, as nobody wants it any more."""


class Lost(Exception):
    """No result, through no fault of the data."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause) if isinstance(cause, DeviceError) else type(cause).__name__)
        self.cause = cause


def arrived(calls: Calls) -> list[Any]:
    """All replies that are there, in the order of their calls, once there is one; none after a while without."""
    refs = list(calls)
    if not refs or not ray.wait(refs, num_returns=1, timeout=WAIT_S)[0]:
        return []
    return there(calls)


def there(calls: Calls) -> list[Any]:
    """All replies that are there, in the order of their calls."""
    refs = list(calls)
    return ray.wait(refs, num_returns=len(refs), timeout=0)[0] if refs else []


def read(ref: Any, call: Call) -> Reply:
    """A reply that is there. Lost where the worker was, Left where it was told to leave it; else what a data failure
    raised."""
    try:
        reply: Reply = ray.get(ref, timeout=ANSWER_S)
    except exceptions.TaskCancelledError as error:
        raise Left from error
    except exceptions.RayError as error:
        if isinstance(unwrap(error), Stopped):
            raise Left from error
        fault, cause = classify(error)
        if fault != "data":
            raise Lost(cause) from error
        raise _data_failure(call, cause) from error
    return reply


def _data_failure(call: Call, cause: BaseException) -> DavRayError:
    if isinstance(cause, DavRayError):
        return cause
    return RunError("search", f"chunk {call.item.name} on {call.worker}: {type(cause).__name__}: {cause}")
