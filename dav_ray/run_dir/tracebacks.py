"""Shortens a traceback to the part that is in the user's own code.

Works on text: tracebacks cross processes, and Ray passes on some of them as words alone.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator
from typing import Any

from dav_ray.redact import hide, printable

MOST_LINES = 15
HEADER = "Traceback (most recent call last):"
_FRAME = re.compile(r'^(\s*)File "(.+?)", line \d+')
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_INSTALLED = tuple(f"site-packages{os.sep}{name}{os.sep}" for name in ("dav_ray", "ray"))
_IMPORTS = ("<frozen importlib", f"importlib{os.sep}__init__.py")


def own_part(text: str | None) -> list[str]:
    """The last MOST_LINES lines of a traceback without the frames of this package and of Ray that lead to the user's
    code; none where it never got there."""
    blocks, found = re.split(rf"^{re.escape(HEADER)}$", _COLOUR.sub("", text or ""), flags=re.MULTILINE), list[str]()
    for block in blocks:
        found += _of_block(block.splitlines())
    if not any(_FRAME.match(line) for line in found):
        return []
    return found if len(found) <= MOST_LINES else [HEADER, "  ...", *found[2 - MOST_LINES :]]


def shown(error: BaseException, whole: bool) -> list[str]:
    """Lines for a terminal, nothing secret in them. whole: all that is known, of this process and of where it began."""
    there = getattr(error, "trace", None)
    lines = own_part(there)
    if whole:
        here = "".join(traceback.format_exception(error))
        lines = [*here.splitlines(), *(["", "where it began:", *there.splitlines()] if there else [])]
    return [printable(_COLOUR.sub("", line).expandtabs(4)) for line in hide("\n".join(lines)).splitlines()]


def as_field(error: BaseException) -> dict[str, Any]:
    """The field `traceback` of an event; none where there is nothing of the user's."""
    lines = own_part(getattr(error, "trace", None))
    return {"traceback": "\n".join(lines)} if lines else {}


def innermost(error: BaseException) -> str:
    """file:line of the frame that raised, "" where there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""


def _of_block(lines: list[str]) -> list[str]:
    """One traceback, and what stands before the next one. Empty where no frame is the user's."""
    kept = list(_without_leading(lines))
    return [HEADER, *kept] if any(_FRAME.match(line) for line in kept) else []


def _without_leading(lines: list[str]) -> Iterator[str]:
    theirs, started, indent = False, False, 0
    for line in lines:
        frame = _FRAME.match(line)
        if frame is not None:
            started, indent = True, len(frame[1])
            theirs = theirs or not _ours(frame[2])
        inside = frame is not None or len(line) - len(line.lstrip()) > indent
        if started and (theirs or not inside):
            yield line


def _ours(file: str) -> bool:
    return file.startswith((_OURS, _IMPORTS[0])) or file.endswith(_IMPORTS[1]) or any(p in file for p in _INSTALLED)
