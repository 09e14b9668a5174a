"""SIGINT and SIGTERM end a run with exit code 130 or 143: everything committed is in the manifest already.

Another thread may end it too, with an error: `demand`.

The signal raises SystemExit wherever the driver is. Native code in between may swallow or translate an exception, so
the signal is remembered too: waits ask `check`, and whatever surfaces after a signal leaves as its exit code.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import types
from collections.abc import Iterator

from dav_ray.errors import DavRayError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TRAINER_THREAD = "ray-train"

_received: list[int] = []
_demanded: list[DavRayError] = []


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """For the main thread. Ray puts handlers of its own in place in `ray.init`, so enter this again after it."""

    def stop(signum: int, frame: types.FrameType | None) -> None:
        first = not _received
        _received.append(signum)
        if first:  # a second signal must not break the way out
            raise SystemExit(128 + signum)

    previous = [signal.signal(number, stop) for number in SIGNALS]
    try:
        yield
        check()
    except SystemExit as stopped:
        check()
        # while Ray starts, its own handler answers SIGTERM with the bare number
        raise SystemExit(128 + signal.SIGTERM if stopped.code == signal.SIGTERM else stopped.code) from None
    except BaseException:
        check()
        raise
    finally:
        for number, handler in zip(SIGNALS, previous, strict=True):
            signal.signal(number, handler)


def interrupted() -> bool:
    """Whether a signal has come: nothing is worth waiting for any more."""
    return bool(_received)


def entangled() -> bool:
    """Whether Ray Train's thread is still inside Ray, whose shutdown is not safe then: the process just ends."""
    return any(thread.name == TRAINER_THREAD for thread in threading.enumerate())


def demand(error: DavRayError) -> None:
    """For any thread: the driver is to end with this error, when it waits next."""
    _demanded.append(error)


def forget() -> None:
    """What was demanded has been heard."""
    _demanded.clear()


def check() -> None:
    """SystemExit if a signal has come; the error that was demanded, if one was."""
    if _received:
        raise SystemExit(128 + _received[0])
    if _demanded:
        raise _demanded[0]
