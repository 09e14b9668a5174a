"""Files of a folder that several processes and nodes share: written as a whole, under locks, line by line."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dav_ray.errors import RunError

LOCK_TIMEOUT_S = 60.0  # holders need milliseconds


class FileFault(RunError, OSError):
    """What the operating system refused: a full or read-only disk, missing rights. Names the file."""


@contextmanager
def named_failures(target: Path) -> Iterator[None]:
    """Raises FileFault for any OSError but that there is no such file."""
    try:
        yield
    except (FileNotFoundError, FileFault):
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        fault = FileFault("storage", f"{target}: {reason}")
        fault.strerror = reason
        raise fault from error


@contextmanager
def written_aside(target: Path, data: bytes) -> Iterator[Path]:
    """A durable file with this content beside the target; what the caller makes of it is made durable too."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = beside(target)
    try:
        with open(aside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield aside
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        aside.unlink(missing_ok=True)


def beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock file beside the target. Raises RunError if someone else holds it for LOCK_TIMEOUT_S.

    `flock` and not `lockf`: the latter does not exclude the threads of one process. The kernel frees the lock
    of a holder that dies. The file itself stays: to remove it would let two holders in.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    with open(target.with_name(f".{target.name}.lock"), "ab") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RunError("storage", f"{lock.name} was held for {LOCK_TIMEOUT_S} s") from None
                time.sleep(0.005)
        yield


def drop_torn_line(file: BinaryIO) -> None:
    """Cut off a last line whose writer died in the middle of it, lest the next line continue it."""
    if file.seek(0, os.SEEK_END) == 0:
        return
    file.seek(-1, os.SEEK_END)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)
