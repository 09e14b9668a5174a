"""A pipeline as a recipe names it: its folder, what is wrong with it, and the model that is built from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dav_ray.config.families.table import family_of
from dav_ray.config.schema import Config


def recipe_of(pipe: Any, folder: Path, *, model: Mapping[str, Any], search: Mapping[str, Any]) -> Config:
    """A configuration over the pipeline, whose files are written to `folder`."""
    pipe.save_pretrained(folder)
    return Config.model_validate(
        {
            "model": {"path": str(folder), **model},
            "prompts": ["a cat"],
            "reward": {"kind": "jpeg_compressibility"},
            "search": search,
        }
    )


def changed(config: Config, **model: Any) -> Config:
    """With other keys of the section `model`."""
    return config.model_copy(update={"model": config.model.model_copy(update=model)})


def mistakes(config: Config) -> list[str]:
    return list(family_of(config.model).mistakes(config, config.model.path))
