"""A run directory, reached through one small interface: a folder that all nodes share, or an object store.

Paths are relative to the run directory, with forward slashes. Two of the writes are conditional, and all that
must not be lost rests on them: `create` (only if absent) and `replace` (only if unchanged since it was read).
An object that is written by `replace` is never also written by `write`, which asks no questions.

Locally, `create` is a hard link and `replace` a compare under a lock file beside the target; both hold across
the nodes of a shared file system that has links and `flock` (NFS 4 does). On an object store, which
`object_store.py` reaches, both are conditional puts.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

from dav_ray.errors import DavRayError, RunError

PARALLEL_READS = 16


class AlreadyExists(DavRayError):
    """`create` found something else at this path."""


class Conflict(DavRayError):
    """`replace` found another version than the one that it was to replace."""


@dataclass(frozen=True)
class Version:
    """Identifies one state of an object: a content hash locally, else the store's ETag and generation."""

    tag: str | None
    generation: str | None = None


class Storage(Protocol):
    """One run directory. Picklable: it holds the URI alone and connects when first used."""

    uri: str

    def read(self, path: str) -> bytes:
        """The whole object. Raises FileNotFoundError if there is none."""
        return self.read_versioned(path)[0]

    def read_versioned(self, path: str) -> tuple[bytes, Version]:
        """The whole object and its version, for `replace`. Raises FileNotFoundError if there is none."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Put a whole object, atomically: readers see the old one or the new one."""
        ...

    def create(self, path: str, data: bytes) -> Version:
        """Put an object that must not exist yet. Raises AlreadyExists.

        Identical content counts as created, since a put may land though its answer is lost. Racing writers
        that must know which one of them won therefore write different contents.
        """
        try:
            return self._create_new(path, data)
        except AlreadyExists:
            stored, version = self.read_versioned(path)
            if stored == data:
                return version
            raise

    def _create_new(self, path: str, data: bytes) -> Version:
        """As `create`, but raises AlreadyExists whatever the content."""
        ...

    def replace(self, path: str, data: bytes, version: Version) -> Version:
        """Put an object in the place of `version`. Raises Conflict if that is not what is stored now."""
        ...

    def exists(self, path: str) -> bool: ...

    def list(self, prefix: str) -> list[str]:
        """Sorted paths of all objects in the folder `prefix` and below; "" is the whole run directory."""
        ...

    def delete(self, path: str) -> None:
        """Remove an object; one that is absent is fine."""
        ...

    def delete_folder(self, prefix: str) -> None:
        """Remove all objects in a folder and below; none is fine."""
        ...

    def sweep_leftovers(self, older_than_s: float) -> int:
        """Remove what writers that died left beside their objects, which nobody lists; how many. What is younger may
        be a live writer's."""
        return 0

    def append_line(self, path: str, line: str) -> None:
        """Add one line (without its newline) to a file of lines. Raises ValueError if it holds a newline."""
        ...

    def read_lines(self, path: str) -> list[str]:
        """All whole lines of a file that `append_line` wrote, numbered parts joined; none if it is absent.

        A last line without its newline is one whose writer died: it is left out.
        """
        pieces = [path] if self.exists(path) else []
        pieces += [part for _, part in line_parts(self, path)]
        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            texts = [_text(self, path, data) for path, data in zip(pieces, pool.map(self.read, pieces), strict=True)]
        return [line for text in texts for line in text.split("\n")[:-1]]


def _text(storage: Storage, path: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise RunError("storage", f"{storage.uri}/{path} can't be read: it is no text") from None


def checked_path(path: str) -> str:
    """The path without a trailing slash. Raises ValueError if it leaves the run directory."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts:
        raise ValueError(f"{path!r} is not a path inside the run directory")
    return "" if pure == PurePosixPath() else str(pure)


def line_bytes(line: str) -> bytes:
    if "\n" in line:
        raise ValueError(f"one line, without its newline: {line!r}")
    return f"{line}\n".encode()


def line_parts(storage: Storage, path: str) -> list[tuple[int, str]]:
    """Number and path of every part of a file of lines, in numeric order."""
    pure = PurePosixPath(path)
    part = re.compile(re.escape(f"{pure.with_suffix('')}/part-") + r"(\d+)" + re.escape(pure.suffix))
    matches = (part.fullmatch(name) for name in storage.list(str(pure.with_suffix(""))))
    return sorted((int(match[1]), match[0]) for match in matches if match)
