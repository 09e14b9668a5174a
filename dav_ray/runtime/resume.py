"""A run directory that holds a run already: whether there is something to do, and where its rounds end.

No round that is closed, no chunk that is accepted and no policy that was trained is ever discarded: where fewer rounds
are asked for than there are, the run ends at those that there are. Nothing here imports torch or ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dav_ray.config.recipe.differences import changes
from dav_ray.config.recipe.load import Recipe, from_yaml, with_values
from dav_ray.run_dir.manifest import ManifestStore

if TYPE_CHECKING:
    from dav_ray.run_dir.manifest import Manifest
    from dav_ray.run_dir.records import RunLog
    from dav_ray.run_dir.storage.interface import Storage

CONFIG = "config.yaml"


def finished(storage: Storage, rounds: int) -> int | None:
    """How many rounds a finished run has, if no more are asked for; else None."""
    stored = ManifestStore(storage).load()
    return stored.closed if stored is not None and stored.phase == "done" and stored.closed >= rounds else None


def with_possible_rounds(recipe: Recipe, storage: Storage) -> Recipe:
    """The recipe with as many rounds as there are at least: closed ones, and one whose policy waits for its
    evaluation."""
    stored = ManifestStore(storage).load()
    least = 0 if stored is None else stored.closed + (stored.phase == "evaluate")
    return recipe if recipe.config.rounds >= least else _with_rounds(recipe, least)


def ends_here(storage: Storage, rounds: int) -> bool:
    """Whether all rounds that are asked for are closed already, and nothing is left but to say so."""
    stored = ManifestStore(storage).load()
    return stored is not None and stored.phase in ("search", "fit") and stored.closed >= rounds


def stored_recipe(storage: Storage, rounds: int) -> Recipe | None:
    """The recipe of the run that is there, with so many rounds; None where its config.yaml is absent."""
    text = _stored_text(storage)
    return None if text is None else _with_rounds(from_yaml(text, f"{storage.uri}/{CONFIG}"), rounds)


def write_config(storage: Storage, recipe: Recipe, log: RunLog) -> None:
    """Write config.yaml; the events tell what is another value than before."""
    before = _stored_text(storage)
    if before == recipe.yaml:
        return
    storage.write(CONFIG, recipe.yaml.encode())
    if before is not None and (changed := changes(before, recipe.yaml, f"{storage.uri}/{CONFIG}")):
        log.event("settings_changed", changes=changed)


def fewer(asked: int, opened: Manifest) -> str:
    """Why a run ends at other rounds than were asked for, or with chunks that no round has used."""
    words = f"the run ends at round {opened.closed}"
    if asked < opened.closed:
        words = f"rounds = {asked}: {opened.closed} are closed, and none is discarded; {words}"
    accepted = len(opened.shards) + len(opened.ahead)
    kept = f"; {accepted} accepted chunks are kept for when it goes on" if accepted else ""
    return f"{words}{kept}"


def _with_rounds(recipe: Recipe, rounds: int) -> Recipe:
    return with_values(recipe, {"rounds": rounds}, f"rounds = {recipe.config.rounds}", "a number")


def _stored_text(storage: Storage) -> str | None:
    return storage.read(CONFIG).decode() if storage.exists(CONFIG) else None
