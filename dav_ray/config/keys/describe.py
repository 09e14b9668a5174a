"""What the configuration's keys are called and allow, in words: for `dav-ray config` and for mistakes."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from dav_ray.config.schema import Config
from dav_ray.strict import Section

_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
    Any: "anything",
}
_BOUNDS: tuple[tuple[type, str, str], ...] = (
    (annotated_types.Gt, "gt", ">"),
    (annotated_types.Ge, "ge", ">="),
    (annotated_types.Lt, "lt", "<"),
    (annotated_types.Le, "le", "<="),
)


@cache
def fields() -> dict[str, FieldInfo]:
    """Every dotted key, sections included, in the configuration's order. Entries of a list have no index."""
    return dict(_walk(Config, ""))


def field_of(key: str) -> FieldInfo | None:
    """The field behind a key as typed, or the one that holds it (a key below `args`, an entry of a list)."""
    name = without_index(key)
    while name and name not in fields():
        name = name.rpartition(".")[0]
    return fields().get(name)


def is_key(text: str) -> bool:
    """Whether this is a dotted key, of a section or of an entry of a list too."""
    return "." in text and without_index(text) in fields()


def allowed(key: str) -> str:
    """What a key takes, for instance `a number > 0 and <= 1`."""
    field = field_of(key)
    if field is None:
        return "nothing"
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "allowed" in extra:
        return str(extra["allowed"])
    bounds = [
        f"{sign} {getattr(m, name):.12g}" for m in field.metadata for kind, name, sign in _BOUNDS if isinstance(m, kind)
    ]
    return " ".join([_words(field.annotation), " and ".join(bounds)]).strip()


def nearest_key(key: str) -> str:
    """A hint for an unknown key: the known one that was probably meant, else the known ones in that place."""
    parent, _, last = without_index(key).rpartition(".")
    known = list(fields())
    same_name = [name for name in known if name.rpartition(".")[2] == last]
    if same_name:
        return f"did you mean {max(same_name, key=lambda name: _similarity(name, key))}?"
    siblings = [name for name in known if name.rpartition(".")[0] == parent]
    for candidates, cutoff in ((siblings, 0.6), (known, 0.75)):
        scored = [(_similarity(name.rpartition(".")[2], last), name) for name in candidates]
        score, best = max(scored, default=(0.0, ""))
        if score >= cutoff:
            return f"did you mean {best}?"
    return f"known here: {', '.join(name.rpartition('.')[2] for name in siblings) or 'no keys'}"


def required_below(key: str) -> list[str]:
    """The keys without default at or below a missing one."""
    name = without_index(key)
    children = [child for child in fields() if child.startswith(f"{name}.") and fields()[child].is_required()]
    return [f"{key}{child[len(name) :]}" for child in children] or [key]


def _walk(section: type[Section], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}", field
        inner = section_of(field.annotation) or next(filter(None, map(section_of, get_args(field.annotation))), None)
        if inner:
            yield from _walk(inner, f"{prefix}{name}.")


def section_of(annotation: Any) -> type[Section] | None:
    """The section that a key of this type is."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _words(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        *first, last = [str(choice) for choice in inner]
        return f"{', '.join(first)} or {last}" if first else last
    if origin in (Union, types.UnionType):
        return " or ".join(_words(choice) for choice in inner)
    if origin is tuple:
        return f"a list of ({_words(inner[0])})"
    if origin is dict:
        return "names with values" if inner[1] is Any else f"names, each with {_words(inner[1])}"
    if section := section_of(annotation):
        return f"keys {', '.join(section.model_fields)}"
    return _WORDS[annotation]


def without_index(key: str) -> str:
    """The key as it is described: entries of a list have no numbers."""
    return re.sub(r"\[\d+\]|\.\d+(?=\.|$)", "", key)


def _similarity(first: str, second: str) -> float:
    return difflib.SequenceMatcher(None, first, second).ratio()
