"""Where driver and trainer meet: an async actor on the driver's node. It holds nothing that storage could not rebuild.

The driver posts a round's job and its groups; ranks poll for them; rank 0 hands in the result and the new weights,
which the search workers fetch from here. Nobody waits inside a call: an answer comes at once, None meaning "not yet".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
from ray import exceptions

from dav_ray.errors import DavRayError, RunError
from dav_ray.run_dir.manifest import Shard
from dav_ray.runtime.train.troubles import Trouble

ANSWER_S = 300.0  # longest wait for an answer: milliseconds, but on a node that starts workers


def ask(role: str, what: str, answer: Any) -> Any:
    """What the mailbox answers; handles are untyped, and so is this. RunError of the role that asked, naming what it
    asked, where no answer comes."""
    try:
        return ray.get(answer, timeout=ANSWER_S)
    except exceptions.GetTimeoutError:
        raise RunError(role, f"the mailbox gave no answer in {ANSWER_S:.0f} s ({what})") from None
    except exceptions.RayActorError as error:
        cause = f"the mailbox, where driver and ranks meet, is gone ({what}: {type(error).__name__})"
        raise RunError(role, f"{cause}; type the same command again to continue") from error


@dataclass(frozen=True)
class Job:
    """One round of training: from policy `base` to policy `base + 1`."""

    round: int
    base: int
    groups: int
    rows: int  # committed rows of the round


@dataclass(frozen=True)
class Place:
    """Where a rank is. process: our own id of its process, another one once Ray Train has started it again."""

    node: str
    process: str
    pid: int = 0


@dataclass(frozen=True)
class Group:
    """Rows of some chunks, cut into one share per rank: as datasets, which may be lost, and where they are stored."""

    datasets: list[Any]  # Ray's, one per rank
    shards: tuple[Shard, ...]  # the same rows, in the same order
    edges: tuple[int, ...]  # rank r has the rows edges[r] to edges[r + 1] - 1
    weights: dict[int, float]  # W by trajectory number


@dataclass(frozen=True)
class Share:
    """What a rank has of a group."""

    dataset: Any
    shards: tuple[Shard, ...]
    first: int
    end: int  # its rows are first to end - 1
    weights: dict[int, float]


class Mailbox:
    """keep: policies of which it holds the reference for the search workers, the newest ones. The weights stay with
    rank 0 as long as it lives: a node fetches them once for its workers, which read storage once they are gone."""

    def __init__(self, keep: int = 1) -> None:
        self._keep = keep
        self._job: Job | None = None
        self._groups: dict[int, Group] = {}
        self._result: dict[str, float] | None = None
        self._weights: dict[int, list[Any]] = {}  # the reference to each version's, in a list
        self._failure: DavRayError | None = None
        self._troubles: list[Trouble] = []  # what ranks raised since the last result
        self._unread: list[Trouble] = []  # the same, until the driver asks
        self._places: dict[int, Place] = {}  # rank -> where it last asked from
        self._lost: list[dict[str, Any]] = []  # datasets that ranks could not read, until the driver asks
        self._micro_batch: int | None = None  # what is left of the ranks' micro-batch once memory ran out
        self._halved: list[dict[str, Any]] = []  # how it came to that, until the driver asks
        self._stopped = False

    async def post_job(self, job: Job) -> None:
        """Open a round; what was posted for another one is dropped."""
        if self._job != job:
            self._job, self._groups, self._result = job, {}, None

    async def post_group(self, number: int, group: Group) -> None:
        self._groups[number] = group

    async def job(self, rank: int, place: Place) -> Job | str | None:
        """The open job; "stop" at the trainer's end; None while there is nothing to do."""
        self._places[rank] = place
        if self._stopped:
            return "stop"
        return self._job if self._result is None else None

    async def group(self, round: int, number: int, rank: int) -> Share | str | None:
        """A rank's share of the group; "stop" at the trainer's end; None while it is not there."""
        if self._stopped:
            return "stop"
        if self._job is None or self._job.round != round or number not in self._groups:
            return None
        group = self._groups[number]
        first, end = group.edges[rank : rank + 2]
        return Share(group.datasets[rank], group.shards, first, end, group.weights)

    async def lose(self, rank: int, round: int, number: int, cause: str) -> None:
        """A rank's dataset was lost; it reads the rows from storage."""
        self._lost.append({"rank": rank, "round": round, "group": number, "cause": cause})

    async def lost(self) -> list[dict[str, Any]]:
        """What ranks lost since the last call of this."""
        lost, self._lost = self._lost, []
        return lost

    async def halve(self, rank: int, micro_batch: int, took: str, cause: str) -> None:
        """A rank ran out of memory with a micro-batch of so many transitions, more than one: all ranks go on with half,
        once Ray Train has started them again. What its peers raise meanwhile counts from here."""
        half = micro_batch // 2
        if self._micro_batch is None or half < self._micro_batch:
            self._micro_batch, self._troubles = half, []
            self._halved.append({"rank": rank, "micro_batch": half, "took": took, "cause": cause})

    async def halved(self) -> list[dict[str, Any]]:
        """Whose memory ran out since the last call of this."""
        halved, self._halved = self._halved, []
        return halved

    async def micro_batch(self, most: int) -> int:
        """Transitions that go through the ranks' networks at once."""
        return most if self._micro_batch is None else min(most, self._micro_batch)

    async def hand_in(self, round: int, metrics: dict[str, float], version: int, held: list[Any]) -> None:
        """A round's result. held: the reference to the new policy's weights, alone in a list."""
        if self._job is not None and self._job.round == round:
            self._result, self._troubles = metrics, []
            newest = sorted({**self._weights, version: held}.items())[-self._keep :]
            self._weights = dict(newest)

    async def fail(self, error: DavRayError, trouble: Trouble) -> None:
        """A fault that no retry mends."""
        self._failure = error
        self._unread.append(trouble)

    async def trouble(self, trouble: Trouble) -> None:
        """A rank raised this; Ray Train starts the ranks again."""
        self._troubles.append(trouble)
        self._unread.append(trouble)

    async def troubles(self) -> list[Trouble]:
        return self._troubles

    async def unread(self) -> list[Trouble]:
        """What ranks raised since the last call of this."""
        unread, self._unread = self._unread, []
        return unread

    async def result(self, round: int) -> dict[str, float] | DavRayError | None:
        """Metrics of the round, or the failure, or None."""
        if self._failure is not None:
            return self._failure
        return self._result if self._job is not None and self._job.round == round else None

    async def ranks(self) -> dict[int, Place]:
        """The trainer's ranks that have come up so far."""
        return self._places

    async def weights(self, version: int) -> list[Any]:
        """The reference to a policy's weights; none where it is not held."""
        return self._weights.get(version, [])

    async def stop(self) -> None:
        """End the ranks, each when it asks next."""
        self._stopped = True

    async def reopen(self) -> None:
        """Be ready for another trainer, once the one that was stopped has ended."""
        self._stopped, self._places, self._troubles = False, {}, []
