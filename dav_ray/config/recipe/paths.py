"""Paths in a recipe, made absolute before anything is frozen: processes live in folders of their own.

A relative path is looked up beside the recipe and then where the command was typed; one that is nowhere stays as it is,
for `preflight` to refuse. A reference that gives a relative path is stored behind its folder, /folder/${oc.env:X,x}/y;
if it gives an absolute one later on, that counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dav_ray.config.model_path import SHIPPED
from dav_ray.config.recipe.typed_yaml import Tree, escaped
from dav_ray.diffusion.pipelines.hub import is_hub_id
from dav_ray.rewards import registry

DEEPEST = 8  # products within products
ROLES = ("search", "reward", "train")
MODEL, FILE, CODE = "model", "file", "code"

Place = tuple[str | int, ...]


def absolute(typed: Tree, tree: Tree, folders: Sequence[str | Path]) -> tuple[Tree, Tree]:
    """The recipe as typed, and with references resolved, in which every path that is found is absolute.

    folders: where relative ones are looked up, first things first.
    """
    where = [os.path.abspath(folder) for folder in folders]
    for place, kind in places(tree):
        text, value = at(typed, place), at(tree, place)
        if not isinstance(value, str):
            continue
        reference = text if isinstance(text, str) and "${" in text else ""
        folder, found = _looked_up(_from_root(reference, value), kind, where)
        tree = _put(tree, place, found)
        if folder and reference:
            typed = _put(typed, place, f"{escaped(folder)}/{reference}")
        elif not reference:
            typed = _put(typed, place, escaped(found))
    return typed, tree


def places(tree: Tree) -> Iterator[tuple[Place, str]]:
    """Where a recipe holds paths, and of what: models (or hub ids), files, code of the user's own (FILE.py:NAME)."""
    yield ("model", "kind"), CODE
    yield ("model", "path"), MODEL
    yield ("model", "draft_vae"), MODEL
    yield ("init", "run"), FILE
    yield ("search", "kind"), CODE
    yield ("mstep", "objective"), CODE
    yield ("evaluate", "reference"), FILE
    yield ("evaluate", "features"), CODE
    modules = at(tree, ("modules",))
    yield from ((("modules", i), FILE) for i in range(len(modules) if isinstance(modules, list) else 0))
    for role in ROLES:
        yield ("roles", role, "python"), FILE
    for section in (("reward",), ("evaluate", "heldout")):
        held = at(tree, section)
        entries: list[Place] = [(*section, i) for i in range(len(held))] if isinstance(held, list) else [section]
        for entry in entries:
            for key in (("python",), ("golden",), ("role", "python")):
                yield (*entry, *key), FILE
            yield from _of_reward(tree, entry)


def _of_reward(tree: Tree, entry: Place, depth: int = 0) -> Iterator[tuple[Place, str]]:
    kind = at(tree, (*entry, "kind"))
    yield (*entry, "kind"), CODE
    if not isinstance(kind, str):
        return
    if argument := registry.fact(kind, registry.FILE):
        yield (*entry, "args", argument), FILE
    if argument := registry.fact(kind, registry.CODE):
        yield (*entry, "args", argument), CODE
    held = at(tree, (*entry, "args", factors)) if (factors := registry.fact(kind, registry.FACTORS)) else None
    if isinstance(held, list) and depth < DEEPEST:
        for i in range(len(held)):
            yield from _of_reward(tree, (*entry, "args", factors, i), depth + 1)


def at(tree: Any, place: Place) -> Any:
    """What lies there; None where nothing does."""
    for key in place:
        if isinstance(tree, dict):
            tree = tree.get(key)
        else:
            tree = tree[key] if isinstance(tree, list) and isinstance(key, int) and key < len(tree) else None
    return tree


def _looked_up(value: str, kind: str, folders: Sequence[str]) -> tuple[str, str]:
    """The folder in which a relative path was found, or nothing, and the path."""
    path, colon, name = value.rpartition(":") if kind == CODE else (value, "", "")
    if not path.strip() or "\0" in path or path.startswith(SHIPPED) or kind == CODE and not path.endswith(".py"):
        return "", value
    path = os.path.expanduser(path)
    if os.path.isabs(path):
        return "", f"{path}{colon}{name}"
    found = [folder for folder in folders if os.path.exists(os.path.join(folder, path))]
    if not found and kind == MODEL and is_hub_id(path):
        found = [folder for folder in folders if not is_hub_id(path, [folder])]  # a folder was meant, and is not there
    return (found[0], f"{os.path.normpath(os.path.join(found[0], path))}{colon}{name}") if found else ("", value)


def _from_root(reference: str, value: str) -> str:
    """What /folder/${...} stands for: the path that the reference gives, in the folder if that is relative."""
    head, follows, _ = reference.partition("/${")
    return os.path.normpath(value[len(head) + 1 :] if value.startswith(f"{head}//") else value) if follows else value


def _put(tree: Any, place: Place, value: Any) -> Any:
    """A copy with another value there; the tree itself where it has nothing there."""
    key, rest = place[0], place[1:]
    if isinstance(tree, dict) and key in tree:
        return {**tree, key: _put(tree[key], rest, value) if rest else value}
    if isinstance(tree, list) and isinstance(key, int) and key < len(tree):
        return [*tree[:key], _put(tree[key], rest, value) if rest else value, *tree[key + 1 :]]
    return tree
