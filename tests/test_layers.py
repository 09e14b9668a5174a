"""Imports: the linter holds the layers (`.importlinter`); here what it can't see, which is what is imported at once."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.places import PACKAGE, ROOT

MOST_FILES = 14
AT_THE_TOP = (9, 12)  # files, folders


def test_the_linter_keeps_every_contract() -> None:
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_folders_are_small() -> None:
    folders = [PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir() and list(path.glob("*.py")))]
    sizes = {path.relative_to(PACKAGE).as_posix(): len(list(path.glob("*.py"))) for path in folders}
    assert {name: size for name, size in sizes.items() if size > MOST_FILES} == {}
    below = [path for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert len(list(PACKAGE.glob("*.py"))) <= AT_THE_TOP[0] and len(below) <= AT_THE_TOP[1]


def test_a_reward_replica_can_live_beside_other_library_versions() -> None:
    """What its file imports at the top: the standard library, numpy and ray."""
    tree = ast.parse((PACKAGE / "runtime/reward/replica.py").read_text(encoding="utf-8"))
    names = [a.name for node in tree.body if isinstance(node, ast.Import) for a in node.names]
    names += [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
    top = {name.split(".")[0] for name in names} - {"__future__"}
    assert top <= set(sys.stdlib_module_names) | {"numpy", "ray"} and {"numpy", "ray"} <= top


@pytest.mark.parametrize(
    "module",
    [
        *("dav_ray", "dav_ray.cli.app", "dav_ray.config.recipe.load", "dav_ray.config.plan", "dav_ray.config.stored"),
        *("dav_ray.config.checks.preflight", "dav_ray.config.keys.table", "dav_ray.config.recipe.template"),
        *("dav_ray.runtime.pretrain.options", "dav_ray.diffusion.masked.condition", "dav_ray.search.options"),
    ],
)
def test_what_runs_before_a_run_needs_nothing_heavy(module: str) -> None:
    heavy = {"torch", "ray", "diffusers", "transformers", "pandas"}
    code = f"import sys, {module}; print(sorted(set(sys.modules) & {heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("module", ["dav_ray.registry", "dav_ray.rewards.registry", "dav_ray.run_dir.marker"])
def test_what_a_reward_replica_needs_is_there_in_any_environment(module: str) -> None:
    code = f"import sys, {module}; print(sorted(set(sys.modules) & {{'torch', 'pydantic', 'omegaconf', 'pandas'}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr
