"""Code of the user's own by its name: `module.path:Name`, or `path/to/file.py:Name`.

Imports nothing but the standard library: a reward's own environment loads by it too.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

RULE = "module.path:Name or path/to/file.py:Name"


def split(target: str) -> tuple[str, str]:
    """(module or file, name)."""
    place, _, name = target.rpartition(":")
    return place, name


def is_file(target: str) -> bool:
    return split(target)[0].endswith(".py")


def absolute(target: str, folder: Path) -> str:
    """A file's target with its absolute path: beside the recipe, whose folder this is, or else here. Any other as it
    is."""
    place, name = split(target)
    if not is_file(target):
        return target
    beside, here = (os.path.abspath(top / os.path.expanduser(place)) for top in (folder, Path(".")))
    return f"{beside if os.path.isfile(beside) else here}:{name}"


def load(target: str) -> Any:
    """The object. ImportError, FileNotFoundError or AttributeError where there is none; whatever the module raises."""
    place, name = split(target)
    module = load_file(place) if is_file(target) else importlib.import_module(place)
    return getattr(module, name)


def load_file(place: str) -> ModuleType:
    """The module of a file, once per process. What lies beside it can be imported by it, as if it were run."""
    file = Path(os.path.abspath(os.path.expanduser(place)))
    name = f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"  # no name of another module
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None, "there is a loader for names that end with .py"
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look for it there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
