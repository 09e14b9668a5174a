"""Hides secrets: values that a recipe takes from the environment never appear in what a process prints, logs or stores.

Errors rise through code that does not know where a value came from. Therefore the values are kept here, one set per
process, and all text that leaves the process goes through `hide`, or through `printable` for a terminal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

LEAST = 6  # letters; a shorter value is no secret, and would be found inside of other words

_known: dict[str, str] = {}  # value -> the reference that stands for it


def remember(name: str, value: str) -> None:
    """The environment variable `name` was read by a recipe."""
    if len(value) >= LEAST:
        _known[value] = f"${{oc.env:{name}}}"


def known() -> dict[str, str]:
    """For a process that gets resolved values from this one, and calls `learn` with it."""
    return dict(_known)


def learn(values: Mapping[str, str]) -> None:
    _known.update(values)


def hide(text: str) -> str:
    """The text with references in the place of values, also where a value is quoted as in JSON or Python."""
    for value in sorted(_known, key=len, reverse=True):
        for form in (value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1]):
            text = text.replace(form, _known[value])
    return text


def hidden(tree: Any) -> Any:
    """`hide` for every text of a record that is to be written."""
    if isinstance(tree, str):
        return hide(tree)
    if isinstance(tree, Mapping):
        return {hidden(key): hidden(value) for key, value in tree.items()}
    return [hidden(value) for value in tree] if isinstance(tree, list | tuple) else tree


def printable(text: str) -> str:
    """One line for a terminal, nothing secret in it: control characters and what is no text are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in hide(text))


PATH = 255  # letters of a path that are shown: its end is what tells


def show(value: Any, most: int = 60) -> str:
    """A value as a user would type it, in `most` letters; nothing secret in it."""
    text = value if isinstance(value, str) and value.strip() else json.dumps(value, default=str, ensure_ascii=False)
    text = hide(text)  # before it is shortened: a part of a secret would not be found
    return text if len(text) <= most else f"{text[: most - 3]}..."
