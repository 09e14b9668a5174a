"""Waiting on a cluster: until something is true, up to a limit that the user has set; how often to look meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from dav_ray.errors import RunError
from dav_ray.runtime.interrupt import check

POLL_S = 0.5


@dataclass
class Deadline:
    """Begins when it is made. role: whose key sets the limit; key: its name in that role's section."""

    role: str
    limit_s: float
    key: str = "start_timeout_s"
    began: float = field(default_factory=time.monotonic)

    @property
    def waited_s(self) -> float:
        return time.monotonic() - self.began

    @property
    def passed(self) -> bool:
        return self.waited_s > self.limit_s

    def error(self, what: str, reason: str = "") -> RunError:
        """To be raised once the deadline has passed; `what` and `reason` as in `not_in_time`."""
        doctor = "; see dav-ray doctor" if self.key.startswith("start") else ""
        return RunError(self.role, not_in_time(what, self.limit_s, self.role, self.key) + reason + doctor)


def not_in_time(what: str, limit_s: float, role: str, key: str = "start_timeout_s") -> str:
    """The sentence for all that is late. what: did not happen; limit_s: the value of the key in the role's section."""
    return f"{what} in {round(limit_s, 1):g} s (roles.{role}.{key})"


def wait_until(true: Callable[[], bool], poll_s: float = POLL_S) -> None:
    """Ask again and again, until it is true. A signal ends the wait, and so does whatever `true` raises."""
    while not true():
        check()
        time.sleep(poll_s)


class Ticker:
    """Says when it is time to look again: at most every `every_s` seconds. at_once: the first time already."""

    def __init__(self, every_s: float, *, at_once: bool = False) -> None:
        self._every_s = every_s
        self._last = float("-inf") if at_once else time.monotonic()

    @property
    def due(self) -> bool:
        return time.monotonic() - self._last >= self._every_s

    def restart(self) -> None:
        """Somebody looks now."""
        self._last = time.monotonic()

    def take(self) -> bool:
        """Whether it is time; the caller looks then."""
        due = self.due
        if due:
            self.restart()
        return due
