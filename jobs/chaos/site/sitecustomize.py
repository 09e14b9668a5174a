"""Holds a process at a named step of writing a named file, so that something can be killed just then.

With this folder on PYTHONPATH every Python process of a cluster imports it at start. It watches the process's own file
operations through Python's audit events and does nothing until DAV_RAY_CHAOS, a folder, has a `hold.json`:
{"number", "run_dir", "pattern" (of the path in the run directory), "step", "skip" (how many to let pass)}.
Steps: before (the file beside it, or the file of lines, is opened), between (that is whole, and is about to get its
name), after (it has its name). The process that gets there leaves NUMBER.beacon and waits for NUMBER.go.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
import time
from typing import Any

LONGEST_S = 30.0
ASIDE = re.compile(r"^\.(?P<name>.+)\.[0-9a-f]{32}\.tmp$")

_place = os.environ.get("DAV_RAY_CHAOS", "")
_busy = threading.local()
_seen: dict[int, int] = {}  # hold's number -> how often it matched in this process


def _step(event: str, args: tuple[Any, ...]) -> tuple[str, str] | None:
    """(step, path) of the file that is being written; None for anything else."""
    if event == "open":
        path, mode = args[0], args[1]
        if isinstance(path, str | os.PathLike) and mode in ("x", "a+"):
            return "before", _target(os.fspath(path))
    elif event in ("os.rename", "os.link"):
        return "between", os.fspath(args[1])
    elif event == "os.remove" and ASIDE.match(os.path.basename(os.fspath(args[0]))):
        return "after", _target(os.fspath(args[0]))
    return None


def _target(path: Any) -> str:
    folder, name = os.path.split(str(path))
    aside = ASIDE.match(name)
    return os.path.join(folder, aside["name"] if aside else name)


def _hold(step: str, path: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        with open(os.path.join(_place, "hold.json")) as file:
            hold = json.load(file)
        inside = os.path.relpath(path, hold["run_dir"])
        if step != hold["step"] or not re.fullmatch(hold["pattern"], inside):
            return
        number = hold["number"]
        _seen[number] = _seen.get(number, -1) + 1
        if _seen[number] != hold["skip"]:
            return
        beacon = os.path.join(_place, f"{number}.beacon")
        mine = f"{beacon}.{os.getpid()}"
        with open(mine, "w") as file:
            json.dump({"pid": os.getpid(), "path": inside, "step": step, "time": time.time()}, file)
        os.link(mine, beacon)  # fails for all but the first
        deadline = time.monotonic() + LONGEST_S
        while time.monotonic() < deadline and not os.path.exists(os.path.join(_place, f"{number}.go")):
            time.sleep(0.01)


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if event not in ("open", "os.rename", "os.link", "os.remove") or getattr(_busy, "now", False):
        return
    _busy.now = True
    try:
        found = _step(event, args)
        if found is not None:
            _hold(*found)
    finally:
        _busy.now = False


if _place:
    sys.addaudithook(_watch)
