"""Code by its name: `module.path:Name`, `path/to/file.py:Name` for code of the user's own, or a registered name.

Imports nothing but the standard library: a reward's own environment loads by it too.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Entry:
    """What a registered name stands for, known without importing it.

    target: module:Name of the class or function; about: what it is, one line; options: module:Name of its section of
    options, where it has one; facts: what else others ask of it; distribution: the installed package that registered
    it, nothing for a part of dav_ray; fault: why it can't be used, where it can't.
    """

    target: str
    about: str = ""
    options: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    distribution: str = ""
    fault: str = ""


class Unregistered(LookupError):
    """A name that can't be used; the text says why, in one line."""


class Registry:
    """Names of one kind of thing: those that ship with dav_ray, then those that installed packages register under
    `[project.entry-points."GROUP"]`. A built-in name is never replaced.

    group: of the entry points; what: a thing of this kind in one word.
    """

    def __init__(self, group: str, what: str, builtin: Mapping[str, Entry]) -> None:
        self.group, self.what, self.builtin = group, what, dict(builtin)

    def __iter__(self) -> Iterator[str]:
        yield from self.builtin
        yield from (name for name in _registered(self.group, tuple(sys.path)) if name not in self.builtin)

    def __contains__(self, name: object) -> bool:
        return name in self.builtin or name in _registered(self.group, tuple(sys.path))

    def __getitem__(self, name: str) -> Entry:
        """Unregistered for a name that there is not, or that can't be used."""
        if name in self.builtin:
            return self.builtin[name]
        found = _registered(self.group, tuple(sys.path)).get(name)
        if found is None:
            raise Unregistered(f"unknown {self.what}; {known(name, self)}")
        if found.fault:
            raise Unregistered(found.fault)
        return found

    def fault(self, name: str) -> str:
        """Why a name can't be used; nothing where it can."""
        try:
            self[name]
        except Unregistered as error:
            return str(error)
        return ""

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """All that is registered, what can't be used too."""
        yield from self.builtin.items()
        for name, entry in _registered(self.group, tuple(sys.path)).items():
            taken = f"is built in: {entry.distribution} can't replace it; allowed: {entry.target}"
            yield name, Entry(**{**vars(entry), "fault": taken}) if name in self.builtin else entry

    def schema(self) -> dict[str, Any]:
        """Of a key that takes a name or a target, for pydantic's `json_schema_extra`: in words, and as JSON schema."""
        *first, last = self.builtin
        names = f"{', '.join(first)} or {last}" if first else last
        own = {"type": "string", "pattern": r":|\$\{"}
        return {"allowed": f"{names}, or {RULE}", "anyOf": [{"enum": [*self.builtin]}, own]}

    def target(self, name: str) -> str:
        """module:Name of a registered name; what has a colon is one already. Raises Unregistered."""
        return name if ":" in name else self[name].target

    def load(self, name: str) -> Any:
        """The class or function. Raises Unregistered, or what its import raises."""
        return load(self.target(name))


@lru_cache(maxsize=64)
def _registered(group: str, path: tuple[str, ...]) -> dict[str, Entry]:
    """What installed packages register in a group, by name. path: `sys.path`, where they lie."""
    found: dict[str, Entry] = {}
    for point in sorted(set(importlib.metadata.entry_points(group=group)), key=lambda point: (point.name, point.value)):
        dist = point.dist
        owner = "an unnamed package" if dist is None else f"{dist.metadata['Name']} {dist.version}"
        target = ":".join(side.strip() for side in point.value.partition("[")[0].split(":"))
        fault = ""
        if not all(all(part.isidentifier() for part in side.split(".")) for side in target.split(":", 1)):
            fault = f"{owner} registers {point.value}, which is no module.path:Name"
        elif ":" not in target:
            fault = f"{owner} registers the module {target}, and names nothing in it; allowed: module.path:Name"
        if (other := found.get(point.name)) and other.target != target:
            fault = f"is registered by {other.distribution} and by {owner}; allowed: {other.target} or {target}"
        found[point.name] = Entry(target, distribution=owner, fault=fault)
    return found


def known(name: str, names: Iterable[str]) -> str:
    """What an unknown name may have been, and what is allowed."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}allowed: {', '.join(sorted(names))}, or module.path:Name"


def on_path(folders: Sequence[str]) -> None:
    """Look in these folders first, in this order, for what is imported from now on."""
    for folder in reversed(folders):
        if folder in sys.path:
            sys.path.remove(folder)
        sys.path.insert(0, folder)


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
