"""The driver's side of the M-step: rounds go to the trainer group by group, new policies come back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from ray import exceptions

from dav_ray import ray_data
from dav_ray.accepted import Accepted, fit_weights
from dav_ray.config import Config
from dav_ray.errors import DavRayError, RunError
from dav_ray.failures import end_process
from dav_ray.interrupt import check
from dav_ray.mstep.mailbox import Group, Job, Place, ask
from dav_ray.mstep.troubles import RESTARTS, Trouble, hopeless, in_words
from dav_ray.places import log_place
from dav_ray.run_files import RunLog
from dav_ray.schedule import training_groups
from dav_ray.secrets import hide
from dav_ray.session import Session

POLL_S = 0.2
LOOK_EVERY_S = 2.0


class Fits:
    """One round at a time. reload: a round's committed chunks, read back from their shards; say: tells the user."""

    def __init__(
        self,
        config: Config,
        actors: Session,
        log: RunLog,
        reload: Callable[[int], Sequence[Accepted]],
        say: Callable[[str], None],
    ) -> None:
        self._config, self._actors, self._log, self._reload, self._say = config, actors, log, reload, say
        self._said: set[tuple[int, str]] = set()  # ranks and classes of errors that the user was told of
        self._round = 0  # whose job is open
        self._posted: set[int] = set()  # its groups that the trainer has
        self._since: float | None = None  # when it was given the last of them
        self._places: dict[int, Place] = {}  # by rank, as told in the events
        self._restarts = 0  # of ranks, since the last policy
        self._ended = False  # whether the ranks were ended in this round, as they hung
        self._looked = time.monotonic()
        self._worked_s = 0.0  # in optimizer steps, on rank 0, of rounds that were waited for

    def busy_s(self) -> float:
        """Seconds that rank 0 has worked so far; until a round's policy tells, it is taken to have worked since it was
        given that round."""
        if self._since is None:
            return self._worked_s
        result = ask("driver", "the new policy", self._actors.mailbox.result.remote(self._round))
        return self._worked_s + (_worked(result) if isinstance(result, dict) else time.monotonic() - self._since)

    @property
    def streams(self) -> bool:
        """Whether training may start before the search of the round ends: weights compare all trajectories."""
        return self._config.overlap == "stream" and self._config.mstep.weights == "none"

    def open(self, round: int) -> None:
        """Tell the trainer that this round is next; it starts now where it lives for a round only."""
        if round == self._round:
            return
        if self._config.roles.train.lifetime == "round":
            self._actors.start_trainer(f"round-{round}", self._log)
        job = Job(round, round - 1, len(self._groups()), self._config.search.trajectories)
        ask("driver", "to post a round", self._actors.mailbox.post_job.remote(job))
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
        self._actors.ensure_trainer(self._log)
        weights = fit_weights(accepted, self._config.mstep.weights)
        by_index = {found.index: found for found in accepted}
        for number, indices in enumerate(self._groups()):
            if number not in self._posted:
                self._post(number, [by_index[i] for i in indices], weights)
        self._since = time.monotonic()

    def wait(self, tick: Callable[[float], None]) -> dict[str, float]:
        """What `check_trainer` gives, once the new policy is there. tick(seconds waited) is called now and then."""
        start = time.monotonic()
        while (result := self.check_trainer()) is None:
            check()
            tick(time.monotonic() - start)
            time.sleep(POLL_S)
        self._ranks()
        self._restarts = 0
        if self._config.roles.train.lifetime == "round":
            self._actors.end_trainer(self._log)
            self._places.clear()
        self._worked_s += _worked(result)
        self._since = None
        return result

    def check_trainer(self) -> dict[str, float] | None:
        """The metrics of the round that was posted, once its policy is there. Raises what no retry mends; RunError if
        the trainer failed too often, or is late with what was posted."""
        result = self._result()
        if result is not None:
            return result  # nothing is late
        role, up = self._config.roles.train, self._ranks()
        self._check_troubles()
        waited = 0.0 if self._since is None else time.monotonic() - self._since
        if self._restarts > RESTARTS * role.replicas:
            raise RunError("train", f"its ranks died again and again ({self._restarts} restarts in a round)")
        if up < role.replicas and waited > role.start_timeout_s:
            raise RunError(
                "train",
                f"{up} of {role.replicas} ranks found a place in {waited:.0f} s (roles.train.start_timeout_s)",
            )
        if waited > role.call_timeout_s + role.start_timeout_s * (up < role.replicas):
            self._hung(waited)
        return None

    def _hung(self, waited: float) -> None:
        """End the ranks, which Ray Train starts again; RunError where that was done in this round already."""
        if self._ended:
            raise RunError("train", f"no new policy in {waited:.0f} s (roles.train.call_timeout_s), and again so")
        self._log.event("train_hung", round=self._round, seconds=round(waited), ranks=sorted(self._places))
        for place in self._places.values():
            end_process(place.node, place.pid)
        self._ended, self._since = True, time.monotonic()

    def _result(self) -> dict[str, float] | None:
        """The metrics of the round that was posted, once its policy is there. Raises what no retry mends."""
        result = ask("driver", "the new policy", self._actors.mailbox.result.remote(self._round))
        if isinstance(result, DavRayError):
            self._ranks()  # it is written down, too
            raise result
        return result

    def _check_troubles(self) -> None:
        """RunError if the trainer has ended, or its ranks failed too often."""
        trainer = self._actors.trainer
        if trainer is not None and trainer.failure is not None:
            raise RunError("train", trainer.failure)
        troubles = ask("driver", "the ranks' troubles", self._actors.mailbox.troubles.remote())
        if cause := hopeless(troubles, self._config.roles.train.replicas):
            raise RunError("train", cause)

    def look(self) -> None:
        """Write down what became of the ranks, at most once in LOOK_EVERY_S seconds; for those who don't wait. Raises
        what no retry mends."""
        if time.monotonic() - self._looked >= LOOK_EVERY_S:
            self._ranks()
            self._result()
            self._check_troubles()

    def _ranks(self) -> int:
        """How many ranks are up. Events tell where each of them is, who was started again, what they lost."""
        self._looked = time.monotonic()
        places: dict[int, Place] = ask("driver", "the ranks", self._actors.mailbox.ranks.remote())
        for rank, place in sorted(places.items()):
            before = self._places.get(rank)
            if before is not None and before.life != place.life:
                self._restarts += 1
                self._log.event("train_restarted", rank=rank, node=place.node)
            if before is None or before.node != place.node:
                log_place(self._log, "train", f"train-{rank}", place.node)
        self._places |= places
        for fields in ask("driver", "what ranks lost", self._actors.mailbox.lost.remote()):
            self._log.event("tables_lost", **fields)
        for fields in ask("driver", "whose memory ran out", self._actors.mailbox.halved.remote()):
            self._log.event("out_of_memory", role="train", **fields)
            self._restarts = 0  # it ends at one transition, however often ranks are started again until then
        for trouble in ask("driver", "what ranks raised", self._actors.mailbox.untold.remote()):
            self._tell(trouble)
        self._log.live("workers", len(places), role="train")
        return len(places)

    def _tell(self, trouble: Trouble) -> None:
        """To the events, and to the user where it is the first of its kind and the run goes on."""
        fields = {"rank": trouble.rank, "node": trouble.node, "cause": trouble.cause}
        self._log.event("rank_failed", **fields, traceback=trouble.trace, log=trouble.log)
        kind = (trouble.rank, trouble.cause.partition(":")[0])
        if not trouble.final and kind not in self._said:
            self._said.add(kind)
            self._say(hide(in_words(trouble)))

    def _groups(self) -> list[list[int]]:
        search, ranks = self._config.search, self._config.roles.train.replicas
        return training_groups(search.trajectories, search.chunk, self._config.mstep.group, ranks)

    def _post(self, number: int, chunks: Sequence[Accepted], weights: dict[int, float]) -> None:
        """One group to the mailbox, as one Ray dataset per rank."""
        world = self._config.roles.train.replicas
        rows = sum(len(c.trajectories) for c in chunks)
        edges = tuple(round(i * rows / world) for i in range(world + 1))
        try:
            datasets = ray_data.cut([c.table for c in chunks], edges)
        except exceptions.RayError as error:
            # the node that held them is gone: the shards are the record
            cause = type(error).__name__
            self._log.event("tables_lost", round=self._round, group=number, cause=cause)
            again = {found.index: found.table for found in self._reload(self._round)}
            datasets = ray_data.cut([again[c.index] for c in chunks], edges)
        mine = {n: weights[n] for c in chunks for n in c.trajectories}
        group = Group(datasets, tuple(c.shard for c in chunks), edges, mine)
        ask("driver", "to post a group", self._actors.mailbox.post_group.remote(number, group))
        self._posted.add(number)


def _worked(result: Mapping[str, float]) -> float:
    return result["util/train"] * result["time/mstep_s"]
