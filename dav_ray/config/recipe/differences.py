"""What differs between the configuration that a run directory holds and the one that is given, key by key."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from dav_ray.config.identity import former_default, may_change, reason, unpacked
from dav_ray.config.keys.describe import field_of
from dav_ray.config.recipe.paths import absolute
from dav_ray.config.recipe.typed_yaml import Tree, parse, resolved
from dav_ray.redact import PATH, show


def differing_keys(stored: str, given: str, where: str = "config.yaml", *, free: Collection[str] = ()) -> list[str]:
    """One line per key that differs between two stored configurations, with both values and why it may not.

    Keys that may change when a run is gone on with (`may_change`) and those of `free` are left out. A key of which a
    release that stored one of them knew nothing counts as its default. Raises UserError naming `where` if that is no
    YAML.
    """
    lines = [
        f"{key}: {change}; fixed: {reason(key)}"
        for key, change in changes(stored, given, where).items()
        if key not in free and not may_change(key)
    ]
    return lines + _other_measures(_comparable(stored, where), _comparable(given, "the recipe"))


def changes(stored: str, given: str, where: str = "config.yaml") -> dict[str, str]:
    """Every key that differs between two stored configurations, each with both values in words. UserError as in
    `differing_keys`."""
    old, new = (dict(_flat(_comparable(*text))) for text in ((stored, where), (given, "the recipe")))
    absent = object()
    found = {}
    for key in [*new, *(key for key in old if key not in new)]:
        field = field_of(key)
        default = field.default if field and isinstance(field.default, str | int | float | None) else absent
        was, now = (values.get(key, default) for values in (old, new))
        was, now = (default if former_default(key, value) else value for value in (was, now))
        if was != now:
            words = ["not set" if value is absent else show(value, PATH) for value in (was, now)]
            found[key] = f"was {words[0]}, now {words[1]}{_begun_elsewhere(was, now)}"
    return found


def _begun_elsewhere(was: Any, now: Any) -> str:
    """A hint where a relative path was stored, as earlier releases did, that may be this one."""
    if isinstance(was, str) and isinstance(now, str) and os.path.isabs(now) and not os.path.isabs(was):
        if now.endswith(f"/{os.path.normpath(was)}"):
            return " (an earlier release stored the relative path; if it is this one, start where the run was begun)"
    return ""


def _comparable(text: str, where: str) -> Tree:
    """A stored configuration with its paths as this release stores them."""
    typed = parse(text, where)
    others = {key: value for key, value in typed.items() if key != "prompts"}  # there may be many
    return {**typed, **absolute(others, resolved(others, {}), (Path("."),))[0]}


def _other_measures(old: Tree, new: Tree) -> list[str]:
    """One line per held-out measure that is another one under the name of before."""
    measures = [
        {
            str(entry.get("name") or entry.get("kind")): entry
            for entry in (tree.get("evaluate") or {}).get("heldout") or ()
        }
        for tree in (old, new)
    ]
    return [
        f"evaluate.heldout: {name}: was {show(was)}, now {show(now)}; fixed: {reason('evaluate.heldout')}"
        for name, entry in measures[0].items()
        if name in measures[1] and (was := _measure(entry)) != (now := _measure(measures[1][name]))
    ]


def _measure(entry: Tree) -> Tree:
    return {key: entry.get(key) for key in ("kind", "args") if entry.get(key)}


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of a stored configuration; a list without sections is one value."""
    if isinstance(node, dict) and (node or not prefix):
        for key, value in node.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, list) and any(isinstance(value, dict) for value in node):
        for i, value in enumerate(node):
            yield from _flat(value, f"{prefix}[{i}]")
    else:
        yield prefix, unpacked(node)
