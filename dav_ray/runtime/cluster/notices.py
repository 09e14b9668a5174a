"""What Ray's native part prints from within the driver: for the search for a fault, not for a user's terminal."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

NAME = "ray.log"  # in the run directory


def notices_file(place: str) -> Path:
    """In the run directory, or in the machine's folder for temporary files where that is an object store."""
    if "://" in place:
        return Path(tempfile.gettempdir()) / f"dav_ray-{os.getpid()}" / NAME
    return Path(place) / NAME


@contextlib.contextmanager
def kept_in(file: Path) -> Iterator[None]:
    """Native code, and loggers that were made before, write to descriptor 2: that is the file for a while. Python's own
    `sys.stderr` stays where it was, so that errors and tracebacks are seen."""
    file.parent.mkdir(parents=True, exist_ok=True)
    before = sys.stderr
    before.flush()
    terminal = os.dup(2)
    with open(file, "ab") as log:
        os.dup2(log.fileno(), 2)
    sys.stderr = os.fdopen(os.dup(terminal), "w", buffering=1, errors="backslashreplace")
    try:
        yield
    finally:
        sys.stderr.close()
        os.dup2(terminal, 2)
        os.close(terminal)
        sys.stderr = before
