"""Prompts of a template with lists: one for each combination of their entries.

template: a {colour} photo of {count} {animal}; colour: [red, blue]; count: [2, 3]; animal: [cats, dogs]
"""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Mapping
from typing import Any

from dav_ray.config.sections.prompts import MOST_PROMPTS, PROMPT, WEIGHT, Prompts, from_rows
from dav_ray.redact import show

TEMPLATE = "template"
RULE = "allowed: {NAME}, and {{ for a brace"


def of_template(given: Mapping[str, Any]) -> Prompts:
    """The product of all lists, the last field of the template varies fastest; the entries of a prompt are its columns.
    ValueError with the key that is wrong."""
    text = given.get(TEMPLATE)
    if not isinstance(text, str):
        raise ValueError(f"{TEMPLATE}: missing; allowed: a text with {{NAME}} in it, and a list for each name")
    names, lists = _fields(text), {key: value for key, value in given.items() if key != TEMPLATE}
    for name in names:
        if name not in lists:
            raise ValueError(f"{TEMPLATE} = {show(text)}: {{{name}}} has no list; allowed: prompts.{name}: [...]")
    for name, entries in lists.items():
        _check(name, entries, names)
    total = math.prod(len(lists[name]) for name in names)
    if total > MOST_PROMPTS:
        raise ValueError(f"{TEMPLATE}: {total:,} prompts; allowed: at most {MOST_PROMPTS:,}")
    rows = (dict(zip(names, entries, strict=True)) for entries in itertools.product(*(lists[name] for name in names)))
    return from_rows(({PROMPT: text.format_map(row), **row} for row in rows), lambda row: f"{TEMPLATE}: prompt {row}")


def _fields(text: str) -> list[str]:
    """Names in braces, in their order, once each."""
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"{TEMPLATE} = {show(text)}: {error}; {RULE}") from None
    names = []
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if not name.isidentifier() or form or conversion:
            raise ValueError(f"{TEMPLATE} = {show(text)}: {{{name}}} is no name; {RULE}")
        names.append(name)
    if not names:
        raise ValueError(f"{TEMPLATE} = {show(text)}: names no list; allowed: a text with {{NAME}} in it")
    return list(dict.fromkeys(names))


def _check(name: Any, entries: Any, names: list[str]) -> None:
    if name in (PROMPT, WEIGHT):
        raise ValueError(f"{name}: is a column of its own; allowed: another name")
    if name not in names:
        raise ValueError(f"{name}: the template has no {{{name}}}; it has {', '.join(names)}")
    fits = isinstance(entries, list) and all(isinstance(entry, str | int | float) for entry in entries)
    if not fits or not entries:
        raise ValueError(f"{name} = {show(entries)}: allowed: a list of texts or numbers, at least one")
