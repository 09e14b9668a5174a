"""Whether a run directory can go on with a recipe: the settings that it holds, and whether anything came of them."""

from __future__ import annotations

from collections.abc import Sequence

from dav_ray.config.batches import Batches
from dav_ray.config.recipe.differences import differing_keys
from dav_ray.config.recipe.load import Recipe, from_yaml
from dav_ray.config.recipe.typed_yaml import parse
from dav_ray.errors import UserError
from dav_ray.run_dir.manifest import ManifestStore
from dav_ray.run_dir.storage.interface import Storage

CONFIG, GOLDEN, PRETRAINED = "config.yaml", "golden", "evaluate/round-0000.parquet"


def differences(stored: str, recipe: Recipe, where: str) -> list[str]:
    """One line per setting that is another than in the stored config.yaml, and may not be."""
    probed = recipe.config.batches == "probed" and parse(stored, where).get("batches", "given") != "given"
    return differing_keys(stored, recipe.yaml, where, free=Batches.of(recipe.config).by_key() if probed else ())


def untouched(storage: Storage) -> bool:
    """Whether a run was begun and nothing has come of it yet: no chunk was accepted, no sample was measured."""
    begun = ManifestStore(storage).load()
    if begun is None or begun.closed or begun.round != 1 or begun.phase != "search":
        return False
    return not begun.shards and not begun.ahead and not storage.exists(PRETRAINED)


def earlier_identities(recipe: Recipe, storage: Storage) -> Sequence[str]:
    """Identities that a run's manifest may have, beside the recipe's own: that of the same settings with relative paths
    as they were typed, and any where nothing has come of the run yet, which then begins anew."""
    begun = ManifestStore(storage).load()
    if begun is None or not storage.exists(CONFIG):
        return ()
    stored, where = storage.read(CONFIG).decode(), f"{storage.uri}/{CONFIG}"
    if not differences(stored, recipe, where):
        known = [config for same in (recipe, from_yaml(stored, where)) for config in (same.config, same.as_typed)]
        return [name for config in known if config for name in (config.identity(), config.former_identity())]
    if not untouched(storage):
        return ()
    storage.delete(CONFIG)
    storage.delete_folder(GOLDEN)  # scores of rewards that may be others now
    return (begun.config_sha256,)


def check_same(stored: str, recipe: Recipe, run_dir: str, storage: Storage) -> None:
    """UserError, a line per setting, where the run is one of other settings and something has come of it."""
    where = f"{run_dir}/{CONFIG}"
    if (lines := differences(stored, recipe, where)) and not untouched(storage):
        raise UserError(
            [
                f"--run-dir {run_dir}: holds a run of other settings; allowed: the same, or a new directory "
                "(dav-ray config lists what may change)",
                *(f"{where}: {line}" for line in lines),
            ]
        )
