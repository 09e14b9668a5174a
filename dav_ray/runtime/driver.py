"""The EM loop. The driver schedules, commits and waits; it never loads a model.

prompts, seeds -> search actors -> shards, committed by the manifest -> Ray Train -> new policy -> ...
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import yaml

from dav_ray.config.batches import Batches
from dav_ray.config.checks.preflight import check_here
from dav_ray.config.families.table import family_of
from dav_ray.config.recipe.load import Recipe
from dav_ray.config.recipe.same_run import earlier_identities
from dav_ray.config.schema import Config
from dav_ray.errors import DavRayError, RunError
from dav_ray.run_dir.manifest import ManifestStore
from dav_ray.run_dir.marker import write_marker
from dav_ray.run_dir.records import RunLog
from dav_ray.run_dir.retention import Retention, sweep_leftovers
from dav_ray.run_dir.storage.interface import Storage
from dav_ray.run_dir.storage.uri import absolute, open_storage
from dav_ray.run_dir.tracebacks import as_field
from dav_ray.runtime import lease
from dav_ray.runtime.cluster.notices import kept_in, notices_file
from dav_ray.runtime.cluster.versions import library_versions
from dav_ray.runtime.initial_policy import copy_initial
from dav_ray.runtime.interrupt import interrupted, interruptible
from dav_ray.runtime.resume import (
    ends_here,
    fewer,
    finished,
    stored_recipe,
    with_possible_rounds,
    write_config,
)
from dav_ray.runtime.watch.progress import Progress
from dav_ray.runtime.watch.trackers import Trackers

if TYPE_CHECKING:
    from dav_ray.runtime.rounds import Rounds
    from dav_ray.runtime.watch.round_reports import RoundReports

RAY_USUAL = "usually 5 s"  # on a machine with two free cores
INTERRUPTED_S = 1.5  # a job that is stopped has 3 s in all


def run(recipe: Recipe, run_dir: str, address: str) -> None:
    """Align a model, or go on where the run directory stopped.

    UserError: the user's mistake, found before any work. RunError: the run failed; what was committed stays.
    """
    place = absolute(run_dir)
    storage, config, progress = open_storage(place), recipe.config, Progress(recipe.config.rounds)
    try:
        with interruptible():
            if (rounds := finished(storage, config.rounds)) is not None:
                none = "" if rounds == config.rounds else f"; rounds = {config.rounds} discards none"
                progress.say(f"{place}: this run is finished ({rounds} rounds){none}; report: {place}/report.html")
                return
            progress.say(f"dav_ray: {recipe.name} in {place}")
            with lease.held(storage, progress.say):
                if finished(storage, config.rounds) is None:  # the holder of the lease before may have done it all
                    with kept_in(notices_file(place)):
                        _go_on(recipe, storage, place, address, progress)
    except SystemExit as stopped:
        progress.say("stopped; type the same command again to continue from what is committed")
        # not through Ray's own end: it takes longer than a job that is stopped has, and Ray reaps what a driver leaves
        os._exit(int(stopped.code or 1))


def _go_on(recipe: Recipe, storage: Storage, place: str, address: str, progress: Progress) -> None:
    """What is left to do of the run: all of it, some rounds, or the end."""
    asked = recipe.config.rounds
    if ends_here(storage, asked):
        _end_here(storage, place, asked, progress)
        return
    recipe = with_possible_rounds(recipe, storage)
    if (rounds := recipe.config.rounds) > asked:
        progress.say(f"rounds = {asked}: round {rounds} has its policy already; the run ends at round {rounds}")
        progress = Progress(rounds)
    _run(recipe, storage, place, address, progress)


def _run(recipe: Recipe, storage: Storage, place: str, address: str, progress: Progress) -> None:
    from dav_ray.runtime.template.start import template

    local = address == "local"
    if local:
        check_here(recipe.config)
        progress.stage(f"starting Ray on this machine: {RAY_USUAL}")
    with template(recipe.config) if local else contextlib.nullcontext() as worker:
        _run_on_ray(recipe, storage, place, address, worker, progress)


def _run_on_ray(
    recipe: Recipe, storage: Storage, place: str, address: str, worker: str | None, progress: Progress
) -> None:
    from dav_ray.runtime.cluster.connect import cluster_name, connected
    from dav_ray.runtime.doctor.refusal import refuse_misfits
    from dav_ray.runtime.probe.settle import settle
    from dav_ray.runtime.session import session
    from dav_ray.runtime.watch.prometheus import Prometheus

    local = address == "local"
    # Ray's start takes the signals over: take them back
    with connected(address, recipe.config, worker), interruptible():
        former = earlier_identities(recipe, storage)
        recipe, probed = settle(recipe, storage, refuse_misfits)
        config = recipe.config
        if config.batches == "probed":
            progress.say(f"batches: {Batches.of(config)}")
        store = ManifestStore(storage)
        opened = store.open(config.identity(), library_versions(), former=former, go_on=True)
        trackers = Trackers(config.track, recipe.name, tracker_folder(place), yaml.safe_load(recipe.yaml))
        prometheus = Prometheus(place.rpartition("/")[2])
        log = RunLog(storage, opened.epoch, trackers, prometheus)
        log.event("driver_started", round=opened.round, phase=opened.phase, cluster=cluster_name())
        write_config(storage, recipe, log)
        write_marker(storage)
        if probed:
            log.event("batches_probed", **probed)
        copy_initial(config, storage, log)
        sweep_leftovers(storage, store, log)
        retention = Retention(config.kept_rounds, storage, store, log)
        progress.stage(f"starting {_actors(config)}: {family_of(config.model).start}")
        name = f"dav_ray-{config.identity()[:8]}-{os.getpid()}-{opened.epoch}"
        held = session(config, place, name, log, embedded=local, say=progress.say, stage=progress.stage)
        with prometheus, failures(log), held as actors:
            from dav_ray.runtime.rounds import Rounds
            from dav_ray.runtime.watch.round_reports import RoundReports

            with ended_in_time(trackers):
                rounds = Rounds(config, storage, store, actors, log, progress)
                reports = RoundReports(place, log, progress)
                align(config, store, rounds, retention, reports, progress)
                reports.end()
    # what was searched ahead of an end that came later then is kept
    _finish(storage, store, place, progress, log, early=bool(opened.ahead))


def _actors(config: Config) -> str:
    """Who is started, in words."""
    roles, rewards = config.roles, len(config.reward)
    counts = ((roles.search.replicas, "search worker"), (rewards * roles.reward.least, "reward worker"))
    words = [f"{num} {name}{'s' * (num > 1)}" for num, name in counts]
    return " and ".join(words)


@contextlib.contextmanager
def failures(log: RunLog) -> Iterator[None]:
    """Write down what ended the run; what Ray or the disk raised becomes a RunError of one line."""
    from ray.exceptions import RayError

    try:
        yield
    except DavRayError as error:
        _tell(log, str(error), **as_field(error))
        raise
    except (RayError, OSError) as error:
        cause = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
        _tell(log, cause)
        raise RunError("driver", cause) from error


def _tell(log: RunLog, cause: str, **fields: str) -> None:
    with contextlib.suppress(DavRayError, OSError):  # the store may be what failed
        log.event("run_failed", cause=cause, **fields)


@contextlib.contextmanager
def ended_in_time(trackers: Trackers) -> Iterator[None]:
    """Trackers hold numbers back until they are ended; where a signal came there is no time to wait for slow ones."""
    try:
        yield
    finally:
        ender = threading.Thread(target=trackers.finish, name="trackers", daemon=True)
        ender.start()
        ender.join(INTERRUPTED_S if interrupted() else None)


def align(
    config: Config,
    store: ManifestStore,
    rounds: Rounds,
    retention: Retention,
    reports: RoundReports,
    progress: Progress,
) -> None:
    """Rounds of E-step and M-step from where the manifest stands."""
    retention.sweep()
    rounds.evaluate_pretrained()
    reports.update()
    while (state := store.current).round <= config.rounds:
        progress.begin_round()
        ahead = config.overlap == "round" and state.round < config.rounds
        if state.phase == "search":
            rounds.search(state.round)  # streams into the trainer with overlap: stream; was done ahead with round
            store.advance(phase="fit")
        if store.current.phase == "fit":
            rounds.post(state.round)
            if ahead:
                rounds.search(state.round + 1)
            rounds.fit()
            store.advance(phase="evaluate", policy_version=state.round)
        if ahead:
            rounds.post(state.round + 1)  # the trainer does not wait for the evaluation
        summary = rounds.evaluate()
        store.close_round(summary)
        reports.update()
        retention.sweep()
        progress.end_round()


def tracker_folder(place: str) -> str:
    """Where trackers write to disk: beside the run, or in the working directory where the run is in an object store."""
    return "tracking" if "://" in place else os.path.join(place, "tracking")


def _end_here(storage: Storage, place: str, asked: int, progress: Progress) -> None:
    """End an unfinished run at the rounds that are closed; nothing is started for it."""
    store = ManifestStore(storage)
    loaded = store.load()
    recipe = stored_recipe(storage, loaded.closed) if loaded is not None else None
    if recipe is None:
        raise RunError("storage", f"{storage.uri}: config.yaml is absent, though there is a run: put it back")
    config = recipe.config
    opened = store.open(config.identity(), library_versions(), former=earlier_identities(recipe, storage))
    log = RunLog(storage, opened.epoch)
    write_config(storage, recipe, log)
    log.event("ended_early", round=opened.closed, asked=asked, accepted=len(opened.shards) + len(opened.ahead))
    progress.say(fewer(asked, opened))
    _finish(storage, store, place, progress, log, early=True)


def _finish(
    storage: Storage, store: ManifestStore, place: str, progress: Progress, log: RunLog, *, early: bool
) -> None:
    from dav_ray.report.table import render_rounds
    from dav_ray.runtime.watch.round_reports import write_last

    path = write_last(place, log, progress)  # before the run is called finished: a rerun would not write it
    store.finish(early=early)
    progress.say(render_rounds(storage))
    progress.say(f"finished in {progress.seconds():.0f} s; report: {path}")
