"""The errors that end a run, and the exit code that each one means.

Ray ships exceptions between processes, so each class survives a pickle round trip: `__reduce__` names the
constructor's own arguments, because `BaseException` would replay the formatted message instead. What
`ray.get` raises is of a class that Ray makes, derived from the one below, with the original exception in its
attribute `cause`, which hides the field of that name: unwrap it before reading fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class DavRayError(Exception):
    """Base of every error that `dav_ray` raises on purpose."""


class UserError(DavRayError):
    """The user's mistake (exit code 2): one line per mistake, naming key, value and what is allowed."""

    lines: list[str]

    def __init__(self, lines: str | Sequence[str]) -> None:
        self.lines = [lines] if isinstance(lines, str) else list(lines)
        super().__init__("\n".join(self.lines))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.lines,), self.__dict__


class RunError(DavRayError):
    """The run failed (exit code 1); `role` is what failed: search, reward, train, driver or storage.

    trace: the traceback of where it began, which may be another process; set by who raises it."""

    role: str
    cause: str
    trace: str | None = None

    def __init__(self, role: str, cause: str) -> None:
        self.role = role
        self.cause = _one_line(cause)
        super().__init__(f"{role}: {self.cause}")

    def _beside(self) -> dict[str, Any]:
        """What a copy has beside its constructor's arguments."""
        return {} if self.trace is None else {"trace": self.trace}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.role, self.cause), self.__dict__


class DataError(RunError):
    """Data that no retry mends: it ends the run.

    what: the kind of fault, one word; rows: samples of the call that are at fault, none where that is not known; kept:
    the file of the run directory that holds the evidence. `evidence` (`rewards.base.Asked`) stays in its process.
    """

    what: str
    rows: tuple[int, ...]
    kept: str | None
    evidence: Any = None

    def __init__(
        self, role: str, cause: str, what: str = "failed", rows: Sequence[int] = (), kept: str | None = None
    ) -> None:
        super().__init__(role, cause if kept is None else f"{cause}; evidence: {kept}")
        self.words, self.what, self.rows, self.kept = cause, what, tuple(rows), kept

    def kept_in(self, path: str) -> DataError:
        """The same, once the evidence is written."""
        kept = type(self)(self.role, self.words, self.what, self.rows, path)
        kept.trace = self.trace
        return kept

    def __reduce__(self) -> tuple[Any, ...]:
        return (
            type(self),
            (self.role, self.words, self.what, self.rows, self.kept),
            self._beside(),
        )


class RewardError(DataError):
    """A reward gave no usable number for a chunk: never retried and never scored 0."""

    reward: str
    chunk: str
    value: str

    def __init__(
        self,
        reward: str,
        chunk: str,
        value: str,
        what: str = "failed",
        rows: Sequence[int] = (),
        kept: str | None = None,
    ) -> None:
        super().__init__("reward", f"{reward} gave {value} for chunk {chunk}", what, rows, kept)
        self.reward, self.chunk, self.value = reward, chunk, value

    def kept_in(self, path: str) -> RewardError:
        kept = type(self)(self.reward, self.chunk, self.value, self.what, self.rows, path)
        kept.trace = self.trace
        return kept

    def __reduce__(self) -> tuple[Any, ...]:
        given = self.reward, self.chunk, self.value, self.what, self.rows, self.kept
        return type(self), given, self._beside()


class DeviceError(RunError):
    """A worker's GPU failed under it: nothing is wrong with the data, and another process may do better."""


class RewardTimeout(RunError, TimeoutError):
    """A reward gave no answer in the time that its role has."""


class Transient(Exception):
    """For rewards to raise where another try may help: a service is busy, a connection broke. The run asks again, later
    and later, for up to roles.reward.retry_s seconds. retry_after_s: not before so many seconds."""

    retry_after_s: float | None

    def __init__(self, words: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(words)
        self.words, self.retry_after_s = words, retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.words, self.retry_after_s)


class Stopped(DavRayError):
    """Nobody wants what was being searched or evaluated any more: another worker has done it."""


class StaleEpoch(RunError):
    """A newer driver has taken this run over; what this one wanted to write was refused."""

    epoch: int
    stored: int

    def __init__(self, epoch: int, stored: int) -> None:
        super().__init__("driver", f"another driver has taken over this run: epoch {epoch} is now {stored}")
        self.epoch, self.stored = epoch, stored

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.epoch, self.stored), self.__dict__


def _one_line(text: str) -> str:
    return " ".join(text.split())
