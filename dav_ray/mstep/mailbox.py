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
    """keep: policies that it holds for the search workers, the newest ones."""

    def __init__(self, keep: int = 1) -> None:
        self._keep = keep
        self._job: Job | None = None
        self._groups: dict[int, tuple[list[Any], dict[int, float]]] = {}
        self._result: dict[str, float] | None = None
        self._weights: dict[int, Any] = {}  # by version
        self._failure: DavRayError | None = None
        self._troubles: list[str] = []  # what ranks raised since the last result
        self._places: dict[int, str] = {}  # rank -> id of the node that it last asked from
        self._stopped = False

    async def post_job(self, job: Job) -> None:
        """Open a round; what was posted for another one is dropped."""
        if self._job != job:
            self._job, self._groups, self._result = job, {}, None

    async def post_group(self, number: int, shares: list[Any], weights: dict[int, float]) -> None:
        """shares: one Ray dataset of rows per rank; weights: W by trajectory number."""
        self._groups[number] = shares, weights

    async def job(self, rank: int, node: str) -> Job | str | None:
        """The open job; "stop" at the trainer's end; None while there is nothing to do. node: where the rank is."""
        self._places[rank] = node
        if self._stopped:
            return "stop"
        return self._job if self._result is None else None

    async def group(self, round: int, number: int, rank: int) -> tuple[Any, dict[int, float]] | str | None:
        """A rank's dataset and the weights of the group; "stop" at the trainer's end; None while it is not there."""
        if self._stopped:
            return "stop"
        if self._job is None or self._job.round != round or number not in self._groups:
            return None
        shares, weights = self._groups[number]
        return shares[rank], weights

    async def hand_in(self, round: int, metrics: dict[str, float], version: int, weights: Any) -> None:
        if self._job is not None and self._job.round == round:
            self._result, self._troubles = metrics, []
            newest = sorted({**self._weights, version: weights}.items())[-self._keep :]
            self._weights = dict(newest)

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

    async def ranks(self) -> dict[int, str]:
        """The trainer's ranks that have come up so far, with the node of each."""
        return self._places

    async def weights(self, version: int) -> Any:
        return self._weights.get(version)

    async def stop(self) -> None:
        """End the ranks, each when it asks next."""
        self._stopped = True

    async def reopen(self) -> None:
        """Be ready for another trainer, once the one that was stopped has ended."""
        self._stopped, self._places, self._troubles = False, {}, []
