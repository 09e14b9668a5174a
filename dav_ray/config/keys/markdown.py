"""The configuration's keys as Markdown, for the page dav_ray/config/README.md.

python -m dav_ray.config.keys.markdown dav_ray/config/README.md    writes them between the page's two marks
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from dav_ray.config.identity import RULES
from dav_ray.config.keys.describe import field_of
from dav_ray.config.keys.table import Key, shown, table

BEGIN, END = "<!-- keys: begin -->", "<!-- keys: end -->"
HEADER = "| key | default | allowed | meaning | may change |\n| --- | --- | --- | --- | --- |"
GENERAL = "General"  # keys of no section


def page(text: str) -> str:
    """The page with today's keys between its marks. ValueError where it has not both of them, in this order."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"a page needs the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{markdown()}\n{END}{after}"


def markdown() -> str:
    """A table for each section, then what may change when a run goes on."""
    keys = table()
    general = [key for key in keys if "." not in key.key]
    nested = [key for key in keys if "." in key.key]
    parts = [_section("", general)]
    parts += [_section(name, list(found)) for name, found in groupby(nested, key=lambda key: key.key.split(".")[0])]
    return "\n\n".join([*parts, _changes()])


def _section(name: str, keys: Sequence[Key]) -> str:
    field = field_of(name)
    heading = f"### `{name}`\n\n{_sentence(field.description or '')}" if name and field else f"### {GENERAL}"
    return "\n".join([f"{heading}\n", HEADER, *map(_row, keys)])


def _row(key: Key) -> str:
    default = "required" if key.required else f"`{shown(key.default)}`"
    cells = f"`{key.key}`", default, key.allowed, key.meaning, "yes" if key.may_change else ""
    return f"| {' | '.join(map(_cell, cells))} |"


def _changes() -> str:
    rows = [f"| {_cell(rule.words)} | {'yes' if rule.free else 'no'} | {_cell(rule.why)} |" for rule in RULES]
    intro = "Whether a run directory may go on under another value of a key. The first line that names a key counts."
    return "\n".join(
        ["## What may change", "", f"{intro}\n", "| keys | may change | why |\n| --- | --- | --- |", *rows]
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _cell(text: str) -> str:
    """Text that Markdown shows as it is, in a table."""
    return re.sub(r"([|*]|<(?=[A-Za-z/]))", r"\\\1", " ".join(text.split()))


def main() -> None:
    path = Path(sys.argv[1])
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
