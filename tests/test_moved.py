"""Paths and names of 0.1.0: an import of one fails with a line that names the new one, which is there."""

from __future__ import annotations

import ast
import importlib
from importlib.util import find_spec
from pathlib import Path

import pytest

from dav_ray.moved import MODULES, NAMES
from tests.support.places import PACKAGE

# the public names of modules of 0.1.0 whose path is a module's or a folder's today: a line each, the path first
NAMES_OF_0_1_0 = Path(__file__).with_name("names-0.1.0.txt").read_text().splitlines()


@pytest.mark.parametrize("old", MODULES)
def test_an_old_module_names_its_new_path(old: str) -> None:
    with pytest.raises(ModuleNotFoundError) as told:
        importlib.import_module(f"dav_ray.{old}")
    assert str(told.value) == f"dav_ray.{old} has moved: use dav_ray.{MODULES[old]}"
    assert find_spec(f"dav_ray.{MODULES[old]}") is not None


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in NAMES.items() for name in names])
def test_an_old_name_names_its_new_path(module: str, name: str) -> None:
    with pytest.raises(ImportError) as told:
        exec(f"from dav_ray.{module} import {name}")
    new = f"dav_ray.{NAMES[module][name]}"
    assert str(told.value) == f"dav_ray.{module}.{name} has moved: use {new}"
    assert is_there(new)


def is_there(dotted: str) -> bool:
    """Whether there is such a name, maybe of something in a module."""
    parts = dotted.split(".")
    end = next(
        end for end in range(len(parts), 0, -1) if Path(PACKAGE.parent, *parts[:end]).with_suffix(".py").exists()
    )
    held: object = importlib.import_module(".".join(parts[:end]))
    for part in parts[end:]:
        held = getattr(held, part, None)
    return held is not None


@pytest.mark.parametrize("line", NAMES_OF_0_1_0, ids=[line.split()[0] for line in NAMES_OF_0_1_0])
def test_no_name_is_gone_without_a_line(line: str) -> None:
    module, *names = line.split()
    place = PACKAGE.joinpath(*module.split("."))
    source = place.with_suffix(".py") if place.with_suffix(".py").exists() else place / "__init__.py"
    there = defined(ast.parse(source.read_text()).body) | {file.stem for file in place.glob("*")}
    assert [name for name in names if name not in there and name not in NAMES.get(module, {})] == []


def defined(body: list[ast.stmt]) -> set[str]:
    """The names that a module binds, imported ones and those of `__all__` too."""
    found: set[str] = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names = {
                part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
            }
            found |= set(ast.literal_eval(str(node.value and ast.unparse(node.value)))) if "__all__" in names else names
    return found


def test_names_that_never_were_are_ordinary_mistakes() -> None:
    for module in NAMES:
        with pytest.raises(ImportError, match=f"cannot import name 'no_such' from 'dav_ray.{module}'"):
            exec(f"from dav_ray.{module} import no_such")


def test_published_paths_stay() -> None:
    from dav_ray import load
    from dav_ray.diffusion.masked import MaskedDiffusion

    assert callable(load) and MaskedDiffusion.__module__ == "dav_ray.diffusion.masked.model"
    with pytest.raises(ModuleNotFoundError, match="No module named 'dav_ray.no_such'"):
        importlib.import_module("dav_ray.no_such")
