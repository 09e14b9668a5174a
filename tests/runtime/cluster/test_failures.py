"""Whose fault it is that a call has no result."""

from __future__ import annotations

import pytest
from ray import exceptions

from dav_ray.errors import DataError, DeviceError, RunError
from dav_ray.runtime.cluster.failures import Fault, classify, died


def raised(cause: Exception) -> exceptions.RayTaskError:
    """What `ray.get` raises of a call that raised the cause."""
    return exceptions.RayTaskError("search", "Traceback: ...", cause)


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (exceptions.ActorDiedError(), "infrastructure"),
        (exceptions.GetTimeoutError(), "infrastructure"),
        (raised(exceptions.ObjectLostError("0" * 56, None, "")), "infrastructure"),
        (raised(DeviceError("search", "a: CUDA error")), "device"),
        (raised(DataError("search", "a reward is NaN", "nan")), "data"),
        (raised(RunError("search", "one state at a time does not fit in memory")), "data"),
        (raised(ValueError("a bug")), "data"),
    ],
)
def test_whose_fault_it_is(error: Exception, fault: Fault) -> None:
    found, cause = classify(error)
    assert found == fault
    assert cause is (error.cause if isinstance(error, exceptions.RayTaskError) else error)


def test_an_actor_whose_constructor_raised_did_not_just_die() -> None:
    assert died(exceptions.ActorDiedError())
    assert not died(exceptions.GetTimeoutError()) and not died(raised(ValueError("a bug")))
