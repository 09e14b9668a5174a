"""Where driver and trainer meet: an async actor on the driver's node. It holds nothing that storage could not rebuild.

The driver posts a round's job and its groups; ranks poll for them; rank 0 hands in the result and the new weights,
which the search workers fetch from here. Nobody waits inside a call: an answer comes at once, None meaning "not yet".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray

from dav_ray.errors import DavRayError


def ask(answer: Any) -> Any:
    """What an actor answers; handles are untyped, and so is this."""
    return ray.get(answer)


@dataclass(frozen=True)
class Job:
    """One round of training: from policy `base` to policy `base + 1`."""

    round: int
    base: int
    groups: int
    rows: int  # committed rows of the round


class Mailbox:
    def __init__(self) -> None:
        self._job: Job | None = None
        self._groups: dict[int, tuple[list[Any], dict[int, float]]] = {}
        self._result: dict[str, float] | None = None
        self._weights: tuple[int, Any] | None = None
        self._failure: DavRayError | None = None
        self._troubles: list[str] = []  # what ranks raised since the last result
        self._alive: set[int] = set()
        self._stopped = False

    async def post_job(self, job: Job) -> None:
        """Open a round; what was posted for another one is dropped."""
        if self._job != job:
            self._job, self._groups, self._result = job, {}, None

    async def post_group(self, number: int, shares: list[Any], weights: dict[int, float]) -> None:
        """shares: one Ray dataset of rows per rank; weights: W by trajectory number."""
        self._groups[number] = shares, weights

    async def has_group(self, number: int) -> bool:
        return number in self._groups

    async def job(self, rank: int) -> Job | str | None:
        """The open job; "stop" at the run's end; None while there is nothing to do."""
        self._alive.add(rank)
        if self._stopped:
            return "stop"
        return self._job if self._result is None else None

    async def group(self, round: int, number: int, rank: int) -> tuple[Any, dict[int, float]] | str | None:
        """A rank's dataset and the weights of the group; "stop" at the run's end; None while it is not there."""
        if self._stopped:
            return "stop"
        if self._job is None or self._job.round != round or number not in self._groups:
            return None
        shares, weights = self._groups[number]
        return shares[rank], weights

    async def hand_in(self, round: int, metrics: dict[str, float], version: int, weights: Any) -> None:
        if self._job is not None and self._job.round == round:
            self._result, self._weights, self._troubles = metrics, (version, weights), []

    async def fail(self, error: DavRayError) -> None:
        """A fault that no retry mends."""
        self._failure = error

    async def trouble(self, cause: str) -> None:
        """A rank raised this; Ray Train starts the ranks again."""
        self._troubles.append(cause)

    async def troubles(self) -> list[str]:
        return self._troubles

    async def result(self, round: int) -> dict[str, float] | DavRayError | None:
        """Metrics of the round, or the failure, or None."""
        if self._failure is not None:
            return self._failure
        return self._result if self._job is not None and self._job.round == round else None

    async def ranks(self) -> int:
        """How many ranks have come up so far."""
        return len(self._alive)

    async def weights(self, version: int) -> Any:
        return self._weights[1] if self._weights is not None and self._weights[0] == version else None

    async def stop(self) -> None:
        self._stopped = True
