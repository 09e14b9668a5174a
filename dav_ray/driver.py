"""The EM loop. The driver schedules, commits and waits; it never loads a model.

prompts, seeds -> search actors -> shards, committed by the manifest -> Ray Train -> new policy -> ...
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from typing import TYPE_CHECKING

import yaml

from dav_ray.config import Config
from dav_ray.interrupt import interruptible
from dav_ray.manifest import ManifestStore
from dav_ray.progress import Progress
from dav_ray.recipe import Recipe
from dav_ray.run_files import RunLog, write_marker
from dav_ray.storage import Storage, open_storage
from dav_ray.track import Trackers

if TYPE_CHECKING:
    from dav_ray.rounds import Rounds


def run(recipe: Recipe, run_dir: str, address: str) -> None:
    """Align a model, or go on where the run directory stopped.

    UserError: the user's mistake, found before any work. RunError: the run failed; what was committed stays.
    """
    place = absolute(run_dir)
    storage, config, progress = open_storage(place), recipe.config, Progress(recipe.config.rounds)
    stored = ManifestStore(storage).load()
    if stored is not None and stored.phase == "done":
        progress.say(f"{place}: this run is finished ({config.rounds} rounds); report: {place}/report.html")
        return
    from dav_ray.session import connected, session

    progress.say(f"dav_ray: {recipe.name} in {place}")
    with connected(address, config), interruptible():
        storage.write("config.yaml", recipe.yaml.encode())
        write_marker(storage)
        store = ManifestStore(storage)
        opened = store.open(config.identity(), library_versions())
        trackers = Trackers(config.track, recipe.name, tracker_folder(place), yaml.safe_load(recipe.yaml))
        log = RunLog(storage, opened.epoch, trackers)
        log.event("driver_started", round=opened.round, phase=opened.phase)
        store.sweep_orphans()
        progress.say("starting the search, reward and train actors")
        with session(config, place, f"dav_ray-{config.identity()[:8]}-{os.getpid()}-{opened.epoch}") as actors:
            from dav_ray.rounds import Rounds

            align(config, store, Rounds(config, storage, store, actors, log, progress), progress)
        trackers.finish()
    _finish(storage, store, place, progress)


def align(config: Config, store: ManifestStore, rounds: Rounds, progress: Progress) -> None:
    """Rounds of E-step and M-step from where the manifest stands."""
    rounds.evaluate_pretrained()
    while (state := store.current).round <= config.rounds:
        progress.begin_round()
        if state.phase == "search":
            accepted = rounds.search()  # streams into the trainer where overlap is on
            store.advance(phase="fit")
        else:
            accepted = rounds.reload()
        if store.current.phase == "fit":
            rounds.fit(accepted)
            store.advance(phase="evaluate", policy_version=state.policy_version + 1)
        summary = rounds.evaluate()
        store.close_round(summary)
        progress.end_round()


def absolute(run_dir: str) -> str:
    """The run directory as every process can use it, whatever its own working directory."""
    return run_dir.rstrip("/") if "://" in run_dir else os.path.abspath(os.path.expanduser(run_dir))


def tracker_folder(place: str) -> str:
    """Where trackers write to disk: beside the run, or in the working directory where the run is in an object store."""
    return "tracking" if "://" in place else os.path.join(place, "tracking")


def library_versions() -> dict[str, str]:
    names = ("ray", "torch", "diffusers", "transformers", "peft", "numpy", "pyarrow")
    found = {name: importlib.metadata.version(name) for name in names}
    import dav_ray

    return {"dav_ray": dav_ray.__version__, "python": sys.version.split()[0], **found}


def _finish(storage: Storage, store: ManifestStore, place: str, progress: Progress) -> None:
    from dav_ray.report import write_report
    from dav_ray.summary import render_rounds

    store.finish()
    path = write_report(place)
    progress.say(render_rounds(storage))
    progress.say(f"finished in {progress.seconds():.0f} s; report: {path}")
