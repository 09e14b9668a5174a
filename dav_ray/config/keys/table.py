"""The configuration's keys as `dav-ray config` prints them: for people, as wide as their terminal, and for programs."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dav_ray.config.identity import listed, may_change, reason
from dav_ray.config.keys.describe import allowed, fields, nearest_key, section_of, without_index
from dav_ray.errors import UserError
from dav_ray.redact import show

NARROWEST, WIDEST = 40, 120  # columns
INDENT = "    "
SAME = ("reward.role", "evaluate.heldout.role")  # keys of another section, described there
LEGEND = "What may change when a run directory is gone on with, and what not:"


@dataclass(frozen=True)
class Key:
    """One key. default: as JSON has it, None too where it is `required`; later: whether a run may be continued under
    another value, and why, where something is known of it."""

    key: str
    default: Any
    required: bool
    allowed: str
    meaning: str
    may_change: bool
    why: str = ""


def table(wanted: str | None = None) -> list[Key]:
    """All keys, those of a section, or one. UserError for a key that there is not."""
    if wanted is None:
        names = [name for name in fields() if not name.startswith(tuple(f"{same}." for same in SAME))]
    else:
        name = without_index(wanted)
        if name not in fields():
            raise UserError(f"{show(wanted)}: unknown key; {nearest_key(wanted)}")
        names = [key for key in fields() if key == name or key.startswith(f"{name}.")]
    return [_key(name) for name in names if not section_of(fields()[name].annotation)]


def render(keys: Sequence[Key], width: int) -> str:
    """Two paragraphs for each: key, default and what is allowed; meaning. No line is longer than `width`, but for a
    word that is."""
    width = min(max(width, NARROWEST), WIDEST)
    lines: list[str] = []
    for entry in keys:
        default = "required" if entry.required else f"= {shown(entry.default)}"
        later = "; may change" if entry.may_change else ""
        lines += _wrapped(f"{entry.key} {default}  ({entry.allowed}{later})", width, "")
        lines += _wrapped(entry.meaning, width, INDENT)
        if len(keys) == 1 and entry.why:
            lines += _wrapped(entry.why, width, INDENT)
    if len(keys) > 1:
        lines += ["", *_wrapped(LEGEND, width, ""), *(line for rule in listed() for line in _wrapped(rule, width, ""))]
    return "\n".join(lines)


def as_json(keys: Sequence[Key]) -> str:
    """A list of objects; those that are required have no default."""
    rows = []
    for entry in keys:
        row = {name: value for name, value in vars(entry).items() if name != "why" or value}
        rows.append({name: value for name, value in row.items() if name != "default" or not entry.required})
    return json.dumps(rows, indent=2, ensure_ascii=False)


def _key(name: str) -> Key:
    field = fields()[name]
    default = None if field.is_required() else _plain(field.get_default(call_default_factory=True))
    return Key(
        name, default, field.is_required(), allowed(name), field.description or "", may_change(name), reason(name)
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def shown(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else show(value)


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent or INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
