"""Comments for a recipe's YAML, from the descriptions of its keys: they say what `dav-ray config` says."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import yaml

from dav_ray.config.keys.describe import fields
from dav_ray.config.recipe.typed_yaml import Loader

WIDTH = 110  # of a line with its comment


def commented(text: str) -> str:
    """The same YAML with a comment for every key that is known, once each, beside it or above it where it is long. A
    line that has a comment keeps its own."""
    lines = text.splitlines()
    above: dict[int, list[str]] = {}
    said: set[str] = set()
    for key, name, value in _entries(yaml.compose(text, Loader=Loader), ""):
        words, line, rest = _words(key), name.start_mark.line, _rest(lines, name, value)
        beside, over = f"# {words}", _over(lines[line], words)
        if rest.startswith("#") and rest != beside or not words or words in said or line in above:
            continue
        said.add(words)
        if rest == beside or lines[max(0, line - len(over)) : line] == over:
            continue  # it is there
        if not rest and _closed(name, value) and len(lines[line]) + 2 + len(beside) <= WIDTH:
            lines[line] = f"{lines[line].rstrip()}  {beside}"
        else:
            above[line] = over
    return "\n".join(part for i, line in enumerate(lines) for part in (*above.get(i, ()), line)) + "\n"


def _entries(node: Any, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, node of the key, node of the value) of everything that stands on a line of its own."""
    if isinstance(node, yaml.MappingNode) and not node.flow_style:
        for name, value in node.value:
            key = f"{prefix}{name.value}"
            yield key, name, value
            yield from _entries(value, f"{key}.")
    elif isinstance(node, yaml.SequenceNode) and not node.flow_style:
        for entry in node.value:
            yield from _entries(entry, prefix)


def _words(key: str) -> str:
    """The description, and the choices where it does not name them all."""
    field = fields().get(key)
    if field is None or not field.description:
        return ""
    choices = _choices(field.annotation)
    missing = [choice for choice in choices if choice not in field.description]
    return field.description + (f": {', '.join(choices)}" if missing else "")


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [choice for inner in get_args(annotation) for choice in _choices(inner)]


def _over(line: str, words: str) -> list[str]:
    """Lines of comment that stand over this one."""
    start = f"{line[: len(line) - len(line.lstrip())]}# "
    return textwrap.wrap(words, WIDTH, initial_indent=start, subsequent_indent=start)


def _block(value: Any) -> bool:
    """Whether a value begins below its key."""
    return isinstance(value, yaml.CollectionNode) and not value.flow_style


def _closed(name: Any, value: Any) -> bool:
    """Whether the line of the key may end in a comment: the value begins below it, or ends on it."""
    return _block(value) or name.start_mark.line == value.end_mark.line


def _rest(lines: list[str], name: Any, value: Any) -> str:
    """What follows on the line where the key, or its value, ends."""
    end = name.end_mark if _block(value) else value.end_mark
    text = lines[end.line][end.column :] if end.line < len(lines) else ""
    return text.strip().removeprefix(":").strip() if _block(value) or end == name.end_mark else text.strip()
