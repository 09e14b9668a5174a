"""A run's actors on a Ray cluster, from their start to their end."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray import exceptions

from dav_ray.config.families.table import family_of
from dav_ray.config.schema import Config
from dav_ray.run_dir.records import RunLog
from dav_ray.runtime.doctor.refusal import refuse_misfits
from dav_ray.runtime.interrupt import interrupted
from dav_ray.runtime.reward.fleet import FleetStart, reward_specs, start_fleet
from dav_ray.runtime.search.workers import SearchTeam, search_team
from dav_ray.runtime.train.rank import TrainSpec
from dav_ray.runtime.train.ranks import MAILBOX, Ranks, start_mailbox

STOP_S = 10.0  # longest wait for the mailbox as a run ends
JOIN_S = 20.0  # and for the ranks


@dataclass(frozen=True)
class Session:
    """What a run holds on the cluster. fleet: the actor that serves the rewards."""

    team: SearchTeam
    ranks: Ranks
    fleet: Any


@contextlib.contextmanager
def session(
    config: Config,
    run_dir: str,
    name: str,
    log: RunLog,
    *,
    train: bool = True,
    embedded: bool = False,
    say: Callable[[str], None] = lambda _: None,
    stage: Callable[[str], None] = lambda _: None,
) -> Iterator[Session]:
    """Start every role and wait for search and reward; the ranks come up meanwhile. RunError names a role that never
    came up; events say where each actor is.

    embedded: on a Ray of this machine that ends with this process. Ranks start when `Ranks.ensure` is called first:
    where all share a few cores they would only keep the search from its first samples. say, stage: print a line for
    the user, without and with the time since the start.
    """
    refuse_misfits(config, train=train)
    config = _pinned(config, log)
    mailbox, team = start_mailbox(name, 1 + config.lag), search_team(config, run_dir, name, log, stage)
    fleet: Any = None
    with tempfile.TemporaryDirectory(prefix="dav_ray-", ignore_cleanup_errors=True) as scratch:
        spec = TrainSpec(config, run_dir, name, MAILBOX)
        ranks = Ranks(spec, mailbox, log, scratch, embedded=embedded, say=say, stage=stage)
        try:
            if train and not embedded:
                ranks.ensure()
            fleet = start_fleet(reward_specs(config, name), run_dir, name)
            team.start()
            rewards = FleetStart(fleet, config, stage)
            team.wait(rewards.look)
            rewards.wait()
            yield Session(team, ranks, fleet)
        finally:
            _stop(team, ranks, fleet)


def _pinned(config: Config, log: RunLog) -> Config:
    """All nodes load the same files, whatever becomes of a model's newest revision meanwhile."""
    pinned = family_of(config.model).pinned(config)
    if pinned.model.revision != config.model.revision:
        log.event("model_revision", path=config.model.path, revision=pinned.model.revision)
    return pinned


def _stop(team: SearchTeam, ranks: Ranks, fleet: Any) -> None:
    """End the ranks, then the actors. What they had done is in storage."""
    if interrupted():
        return  # they end with the driver
    with contextlib.suppress(exceptions.RayError):
        ray.get(ranks.mailbox.stop.remote(), timeout=STOP_S)
    ranks.join(JOIN_S)
    team.kill()
    for actor in (fleet, ranks.mailbox):
        if actor is not None:
            ray.kill(actor)
