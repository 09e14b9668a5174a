"""Which of a worker's calls has the model: one computes while another stores what it found."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from dav_ray.errors import Stopped

ASK_S = 0.5  # between two looks at whether a call that waits is still wanted


class OneAtATime:
    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def turn(self, unwanted: Callable[[], bool]) -> Iterator[None]:
        """Once no other call is in here. Stopped where nobody wants this one any more before its turn comes."""
        while not self._lock.acquire(timeout=ASK_S):
            if unwanted():
                raise Stopped
        try:
            if unwanted():
                raise Stopped
            yield
        finally:
            self._lock.release()
