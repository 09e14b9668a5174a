"""Where code of the user's own lies, and the line that says so: nothing is imported to tell."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder

from dav_ray.redact import PATH, show
from dav_ray.registry import is_file, split

ABSENT = "not found here"


def module_file(module: str, path: Sequence[str] | None = None) -> str | None:
    """The file of a module, found without importing it or a package above it; None where there is none to be seen.

    path: folders in place of this process' own and the current one.
    """
    search: list[str] | None = [*sys.path, os.getcwd()] if path is None else [*path]
    parts, spec = module.split("."), None
    for i in range(len(parts)):
        spec = PathFinder.find_spec(".".join(parts[: i + 1]), search)
        if spec is None:
            return None
        search = list(spec.submodule_search_locations or [])
    return spec.origin if spec else None


def said_import(key: str, target: str, python: str | None = None) -> str:
    """That a class or function of the user's own is imported, and from where. python: the interpreter that does."""
    module, _ = split(target)
    if is_file(target):
        return f"imports {show(target, PATH)} ({key})"
    if python:
        return f"imports {show(target)} from where {show(python, PATH)} finds it ({key})"
    found = module_file(module)
    return f"imports {show(target)} from {found} ({key})" if found else f"imports {show(target)}: {ABSENT} ({key})"
