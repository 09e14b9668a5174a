"""A run directory that holds a run: its storage, manifest and configuration."""

from __future__ import annotations

from dataclasses import dataclass

from dav_ray.config.schema import Config
from dav_ray.errors import UserError
from dav_ray.redact import PATH, show
from dav_ray.run_dir.manifest import Manifest
from dav_ray.run_dir.storage.interface import Storage
from dav_ray.run_dir.storage.uri import open_storage


@dataclass(frozen=True)
class StoredRun:
    """A run directory that holds a run."""

    storage: Storage
    manifest: Manifest
    config: Config


def read_run(run_dir: str) -> StoredRun:
    """UserError if there is no run at `run_dir`."""
    from dav_ray.config.recipe.load import from_yaml
    from dav_ray.run_dir.manifest import ManifestStore

    storage = open_storage(run_dir)
    manifest = ManifestStore(storage).load()
    if manifest is None:
        raise UserError(f"{run_dir}: is no run directory (it has no manifest.json)")
    text = read_run_file(run_dir, "config.yaml")
    if text is None:
        raise UserError(f"{run_dir}: is no run directory (it has no config.yaml)")
    recipe = from_yaml(text, f"{run_dir}/config.yaml")
    return StoredRun(storage, manifest, recipe.config)


def read_run_file(run_dir: str, name: str) -> str | None:
    """A text file of a run directory, None if there is none. Raises UserError for a URI that can't be one, a path that
    no file can have, or a file that is no text."""
    storage = open_storage(run_dir)
    try:
        return storage.read(name).decode() if storage.exists(name) else None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no text"
        raise UserError(
            f"{show(run_dir, PATH)}/{name}: can't be read: {reason}; allowed: what `dav-ray run` wrote"
        ) from None
