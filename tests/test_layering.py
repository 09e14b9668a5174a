"""Imports point one way: what computes never reaches for Ray, at the top of a file or inside a function."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "dav_ray"
SINGLE = (
    *("types", "noise", "schedule", "config", "manifest", "storage", "buffer", "policy", "evaluate"),
    *("sequences", "checkpoint", "masked_model", "pretrain", "batches", "probing"),
    *("lease", "retention", "local_files", "object_storage", "interrupt"),
    *("may_change", "differences", "going_on", "initial", "init_options", "policy_files", "shown_samples", "track"),
    *("own_recipe", "recipe_comments", "recipe_schema", "key_table", "pretrain_options", "ray_addresses"),
)
FOLDERS = ("diffusion", "search", "rewards", "samples", "problems")
DOCTOR = ("findings", "fit", "measure", "memory", "packing", "pool", "timing", "versions", "weights")
PURE = sorted(
    {f"{name}.py" for name in SINGLE}
    | {f"{folder}/{file.name}" for folder in FOLDERS for file in (PACKAGE / folder).glob("*.py")}
    | {"mstep/objective.py", "mstep/fit.py"}
    | {f"doctor/{name}.py" for name in DOCTOR}
)
PURE = [file for file in PURE if not file.endswith("actor.py")]


def imports(node: ast.AST, function: str = "") -> list[tuple[str, str]]:
    """(innermost function, module) for every import below a node; `from a import b` may mean the module a.b."""
    found = []
    for child in ast.iter_child_nodes(node):
        inside = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
        if isinstance(child, ast.Import):
            found += [(function, alias.name) for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "relative imports are not followed"
            found += [(function, child.module or "")]
            found += [(function, f"{child.module}.{alias.name}") for alias in child.names]
        found += imports(child, inside)
    return found


def file_imports(file: str) -> list[tuple[str, str]]:
    return imports(ast.parse((PACKAGE / file).read_text(encoding="utf-8")))


def own_file(module: str) -> str | None:
    """The file, relative to the package, of one of its modules; None for any other module or name."""
    path = module.replace(".", "/").removeprefix("dav_ray/")
    return f"{path}.py" if module.startswith("dav_ray.") and (PACKAGE / f"{path}.py").is_file() else None


def chain_to_ray(file: str, seen: set[str]) -> list[str] | None:
    """The files over which `file` reaches Ray; None if it does not."""
    seen.add(file)
    for _, module in file_imports(file):
        if module.split(".")[0] == "ray":
            return [file, module]
        target = own_file(module)
        if target and target not in seen and (rest := chain_to_ray(target, seen)):
            return [file, *rest]
    return None


def test_there_is_something_to_walk() -> None:
    assert {"search/dav.py", "diffusion/masked.py", "rewards/jpeg.py", "samples/kmers.py", "pretrain.py"} < set(PURE)
    assert chain_to_ray("search/actor.py", set()) == ["search/actor.py", "ray"]
    assert chain_to_ray("driver.py", set()) is not None


@pytest.mark.parametrize("file", PURE)
def test_pure_code_never_reaches_ray(file: str) -> None:
    assert chain_to_ray(file, set()) is None


def test_a_reward_actor_can_live_beside_other_library_versions() -> None:
    """What its file imports at the top: the standard library, numpy and ray."""
    tree = ast.parse((PACKAGE / "rewards/actor.py").read_text(encoding="utf-8"))
    top = {module.split(".")[0] for function, module in imports(tree) if not function}

    assert top <= set(sys.stdlib_module_names) | {"numpy", "ray"}
    assert {"numpy", "ray"} <= top
