"""Paths of 0.1.0: an import of one fails with a line that names the new one, which is there."""

from __future__ import annotations

import importlib
from importlib.util import find_spec

import pytest

from dav_ray.moved import MODULES, NAMES


@pytest.mark.parametrize("old", MODULES)
def test_an_old_module_names_its_new_path(old: str) -> None:
    with pytest.raises(ModuleNotFoundError) as told:
        importlib.import_module(f"dav_ray.{old}")
    assert str(told.value) == f"dav_ray.{old} is dav_ray.{MODULES[old]} since 0.2"
    assert find_spec(f"dav_ray.{MODULES[old]}") is not None


@pytest.mark.parametrize(("package", "name"), [(package, name) for package, names in NAMES.items() for name in names])
def test_a_name_of_a_path_that_is_a_folder_now(package: str, name: str) -> None:
    with pytest.raises(ImportError) as told:
        exec(f"from dav_ray.{package} import {name}")
    new = f"dav_ray.{NAMES[package][name]}"
    assert str(told.value) == f"dav_ray.{package}.{name} is {new}.{name} since 0.2"
    assert hasattr(importlib.import_module(new), name)


def test_published_paths_stay() -> None:
    from dav_ray import load
    from dav_ray.diffusion.masked import MaskedDiffusion

    assert callable(load) and MaskedDiffusion.__module__ == "dav_ray.diffusion.masked.model"
    with pytest.raises(ModuleNotFoundError, match="No module named 'dav_ray.no_such'"):
        importlib.import_module("dav_ray.no_such")
