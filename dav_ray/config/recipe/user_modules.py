"""Finds the folders of the user's own modules that a recipe names.

The folders are kept in the configuration, so that every process finds the modules, whatever its working directory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from dav_ray.config.imports import module_file
from dav_ray.config.recipe.paths import CODE, at, places
from dav_ray.config.recipe.typed_yaml import Tree, escaped


def with_modules(typed: Tree, tree: Tree, folders: Sequence[str | Path]) -> tuple[Tree, Tree]:
    """The recipe (as typed, and resolved) with `modules` filled in, unless it names some: those of the folders that
    hold a module of the user's own."""
    if tree.get("modules"):
        return typed, tree
    where = list(dict.fromkeys(os.path.abspath(folder) for folder in folders))
    names = [*_modules(tree)]
    found = [folder for folder in where if any(module_file(name, [folder]) for name in names)]
    if not found:
        return typed, tree
    return {**typed, "modules": [escaped(folder) for folder in found]}, {**tree, "modules": found}


def _modules(tree: Tree) -> Iterator[str]:
    """Names in `module.path:Name`."""
    for place, kind in places(tree):
        module, colon, _ = value.partition(":") if isinstance(value := at(tree, place), str) else ("", "", "")
        own = colon and all(part.isidentifier() for part in module.split(".")) and module.split(".")[0] != "dav_ray"
        if kind == CODE and own:
            yield module
