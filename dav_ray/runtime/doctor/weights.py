"""What a model's files say of its size: safetensors headers and JSON, no tensor is read."""

from __future__ import annotations

import contextlib
from pathlib import Path

from dav_ray.config.families.sizes import Sizes
from dav_ray.config.families.table import family_of
from dav_ray.config.model_path import model_path
from dav_ray.config.schema import Config


def read_sizes(config: Config) -> Sizes:
    """The networks of a recipe's model, as their files have them, or as their configurations describe those that are
    not on this machine. OSError or ValueError, in words: nothing tells, or the files are no safetensors."""
    family = family_of(config.model)
    try:
        place = Path(_local(model_path(config.model.path), config.model.revision))
    except ValueError:
        with contextlib.suppress(ValueError):
            return family.described(config)
        raise
    return family.sizes(config, place)


def _local(path: str, revision: str | None) -> str:
    """The folder itself, or where the hub's files of this id lie on this machine."""
    if Path(path).exists():
        return path
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(path, revision=revision, local_files_only=True)
    except (OSError, ValueError):
        raise ValueError(f"{path} is not on this machine") from None
