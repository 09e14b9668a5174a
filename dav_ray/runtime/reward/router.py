"""The fleet of rewards: one async actor per run, beside the driver, between search workers and the rewards' replicas.

search workers -> one queue per reward -> the next free replica of that reward. Only scores and references pass here.
It holds nothing that can't be had again: after a restart there are new replicas, and search workers ask once more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

from dav_ray.errors import DavRayError
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.runtime.reward.golden_scores import known_golden
from dav_ray.runtime.reward.replicas import Crew
from dav_ray.runtime.reward.spec import PoolState, RewardSpec

TICK_S = 0.2
EVENTS = 10_000  # kept until the driver fetches them


class Fleet:
    def __init__(self, rewards: Sequence[RewardSpec], run_dir: str) -> None:
        storage = open_storage(run_dir)
        self._events: deque[tuple[str, dict[str, Any]]] = deque(maxlen=EVENTS)
        self._crews = [Crew(spec, run_dir, storage, known_golden(spec, storage), self._tell) for spec in rewards]
        self._ticking: asyncio.Task[None] | None = None

    async def score(
        self, samples: list[tuple[Any, int]], num: int, alike: Any, conditions: list[str], grad: bool
    ) -> Any:
        """Every reward's answer, see `Crew.ask`; None if one of them lost the samples; or the DavRayError that one of
        them came to.

        samples: in order, arrays or references, each with its rows, in a list, so that Ray does not fetch them here;
        num: all rows; alike: requests of which this is equal may be scored together.
        """
        self._tick()
        try:
            answers = await asyncio.gather(*(c.ask(samples, num, alike, conditions, grad) for c in self._crews))
        except DavRayError as error:
            return error
        return None if any(answer is None for answer in answers) else answers

    async def missing(self) -> DavRayError | list[str]:
        """Labels of rewards of which no replica was admitted yet, or why one of them never will."""
        self._tick()
        failure = next((crew.failure for crew in self._crews if crew.failure is not None), None)
        return failure or [crew.spec.label for crew in self._crews if not crew.pool.served]

    async def wants(self) -> list[str | None]:
        """In which type each reward wants images; None where no replica has said so yet."""
        self._tick()
        return [crew.wants for crew in self._crews]

    async def state(self) -> list[PoolState]:
        """Of each reward."""
        self._tick()
        return [crew.state() for crew in self._crews]

    async def events(self) -> list[tuple[str, dict[str, Any]]]:
        """What happened since this was asked last: (event, fields)."""
        found = list(self._events)
        self._events.clear()
        return found

    def _tell(self, event: str, **fields: Any) -> None:
        self._events.append((event, fields))

    def _tick(self) -> None:
        """There is no event loop yet when an actor is built."""
        if self._ticking is None or self._ticking.done():
            self._ticking = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while True:
            for crew in self._crews:
                crew.pump()
            await asyncio.sleep(TICK_S)
