"""The driver's side of the M-step: rounds go to the trainer group by group, new policies come back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from ray import exceptions

from dav_ray.config.partition import training_groups
from dav_ray.config.schema import Config
from dav_ray.errors import DavRayError, RunError
from dav_ray.run_dir.records import RunLog
from dav_ray.runtime.accepted import Accepted, fit_weights
from dav_ray.runtime.cluster.deadlines import Deadline, not_in_time, wait_until
from dav_ray.runtime.train import datasets
from dav_ray.runtime.train.mailbox import Group, Job, ask
from dav_ray.runtime.train.ranks import Ranks
from dav_ray.runtime.train.troubles import RESTARTS

POLL_S = 0.2


class TrainJob:
    """What the ranks have to do: one round at a time. reload: a round's committed chunks, read back from their
    shards."""

    def __init__(self, config: Config, ranks: Ranks, log: RunLog, reload: Callable[[int], Sequence[Accepted]]) -> None:
        self._config, self._ranks, self._log, self._reload = config, ranks, log, reload
        self._round = 0  # whose job is open
        self._posted: set[int] = set()  # its groups that the trainer has
        self._since: float | None = None  # when it was given the last of them
        self._ended = False  # whether the ranks were ended in this round, as they hung
        self._worked_s = 0.0  # in optimizer steps, on rank 0, of rounds that were waited for

    def busy_s(self) -> float:
        """Seconds that rank 0 has worked so far; until a round's policy tells, it is taken to have worked since it was
        given that round."""
        if self._since is None:
            return self._worked_s
        result = ask("driver", "the new policy", self._ranks.mailbox.result.remote(self._round))
        return self._worked_s + (_worked(result) if isinstance(result, dict) else time.monotonic() - self._since)

    @property
    def streams(self) -> bool:
        """Whether training may start before the search of the round ends: weights compare all trajectories."""
        return self._config.overlap == "stream" and self._config.mstep.weights == "none"

    def open(self, round: int) -> None:
        """Post the round as the next one; ranks that are started for each round start now."""
        if round == self._round:
            return
        if self._config.roles.train.lifetime == "round":
            self._ranks.start(f"round-{round}")
        job = Job(round, round - 1, len(self._groups()), self._config.search.trajectories)
        ask("driver", "to post a round", self._ranks.mailbox.post_job.remote(job))
        self._round, self._posted, self._since, self._ended = round, set(), None, False

    def stream(self, accepted: Mapping[int, Accepted]) -> None:
        """Post the open round's groups that are complete; accepted: its chunks so far, by index."""
        for number, indices in enumerate(self._groups()):
            if number not in self._posted and all(i in accepted for i in indices):
                chunks = [accepted[i] for i in indices]
                self._post(number, chunks, fit_weights(chunks, self._config.mstep.weights))

    def post(self, round: int, accepted: Sequence[Accepted]) -> None:
        """Hand a whole round to the trainer: what it has not got yet."""
        self.open(round)
        if self._since is not None:
            return
        self._ranks.ensure()
        weights = fit_weights(accepted, self._config.mstep.weights)
        by_index = {found.index: found for found in accepted}
        for number, indices in enumerate(self._groups()):
            if number not in self._posted:
                self._post(number, [by_index[i] for i in indices], weights)
        self._since = time.monotonic()

    def wait(self, tick: Callable[[float], None]) -> dict[str, float]:
        """What `poll` gives, once the new policy is there. tick(seconds waited) is called now and then."""
        start, found = time.monotonic(), list[dict[str, float]]()

        def there() -> bool:
            if (result := self.poll()) is not None:
                found.append(result)
            else:
                tick(time.monotonic() - start)
            return bool(found)

        wait_until(there, POLL_S)
        (result,) = found
        self._ranks.look()
        self._ranks.restarts = 0
        if self._config.roles.train.lifetime == "round":
            self._ranks.end()
        self._worked_s += _worked(result)
        self._since = None
        return result

    def poll(self) -> dict[str, float] | None:
        """The metrics of the round that was posted, once its policy is there. Raises what no retry mends; RunError if
        the trainer failed too often, or is late with what was posted."""
        result = self._result()
        if result is not None:
            return result  # nothing is late
        role, up = self._config.roles.train, self._ranks.look()
        self._ranks.check()
        waited = 0.0 if self._since is None else time.monotonic() - self._since
        starting = role.start_timeout_s * (up < role.replicas)
        if (restarts := self._ranks.restarts) > RESTARTS * role.replicas:
            raise RunError("train", f"its ranks died again and again ({restarts} restarts in a round)")
        if self._since is not None and starting:
            start = Deadline("train", starting, began=self._since)
            if start.passed:
                raise start.error(f"{up} of {role.replicas} ranks found a place")
        if waited > role.call_timeout_s + starting:
            self._hung(waited)
        return None

    def _hung(self, waited: float) -> None:
        """End the ranks, which Ray Train starts again; RunError where that was done in this round already."""
        if self._ended:
            words = not_in_time("no new policy", self._config.roles.train.call_timeout_s, "train", "call_timeout_s")
            raise RunError("train", f"{words}, for the second time")
        self._log.event("train_hung", round=self._round, seconds=round(waited), ranks=self._ranks.numbers)
        self._ranks.kill()
        self._ended, self._since = True, time.monotonic()

    def _result(self) -> dict[str, float] | None:
        """The metrics of the round that was posted, once its policy is there. Raises what no retry mends."""
        result = ask("driver", "the new policy", self._ranks.mailbox.result.remote(self._round))
        if isinstance(result, DavRayError):
            self._ranks.look()  # it is written down, too
            raise result
        return result

    def look(self) -> None:
        """Write down what became of the ranks, every few seconds; for a caller that does not wait. Raises what
        no retry mends."""
        if self._ranks.overdue:
            self._ranks.look()
            self._result()
            self._ranks.check()

    def _groups(self) -> list[list[int]]:
        search, ranks = self._config.search, self._config.roles.train.replicas
        return training_groups(search.trajectories, search.chunk, self._config.mstep.group, ranks)

    def _post(self, number: int, chunks: Sequence[Accepted], weights: dict[int, float]) -> None:
        """One group to the mailbox, as one Ray dataset per rank."""
        world = self._config.roles.train.replicas
        rows = sum(len(c.trajectories) for c in chunks)
        edges = tuple(round(i * rows / world) for i in range(world + 1))
        try:
            shares = datasets.cut([c.table for c in chunks], edges)
        except exceptions.RayError as error:
            # the node that held them is gone: the shards are the record
            cause = type(error).__name__
            self._log.event("tables_lost", round=self._round, group=number, cause=cause)
            again = {found.index: found.table for found in self._reload(self._round)}
            shares = datasets.cut([again[c.index] for c in chunks], edges)
        mine = {n: weights[n] for c in chunks for n in c.trajectories}
        group = Group(shares, tuple(c.shard for c in chunks), edges, mine)
        ask("driver", "to post a group", self._ranks.mailbox.post_group.remote(number, group))
        self._posted.add(number)


def _worked(result: Mapping[str, float]) -> float:
    return result["util/train"] * result["time/mstep_s"]
