"""A run directory, reached through one small interface: a folder that all nodes share, or an object store.

Paths are relative to the run directory, with forward slashes. Two of the writes are conditional, and all that
must not be lost rests on them: `create` (only if absent) and `replace` (only if unchanged since it was read).
An object that is written by `replace` is never also written by `write`, which asks no questions.

Locally, `create` is a hard link and `replace` a compare under a lock file beside the target; both hold across
the nodes of a shared file system that has links and `flock` (NFS 4 does). On an object store, which
`object_storage.py` reaches, both are conditional puts.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from dav_ray.errors import DavRayError, RunError, UserError

LOCK_TIMEOUT_S = 60.0  # holders need milliseconds
PARALLEL_READS = 16
_HIDDEN = re.compile(r"\..+\.(tmp|lock)")


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
            texts = [data.decode() for data in pool.map(self.read, pieces)]
        return [line for text in texts for line in text.split("\n")[:-1]]

    def download_folder(self, prefix: str, local_dir: str | Path) -> None:
        """Copy a folder to this machine. Raises FileNotFoundError if nothing is in it."""
        names = [str(PurePosixPath(path).relative_to(prefix)) for path in self.list(prefix)]
        if not names:
            raise FileNotFoundError(f"{self.uri}/{prefix} is empty or absent")
        target = LocalStorage(str(Path(local_dir).absolute()))
        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            for _ in pool.map(lambda name: target.write(name, self.read(_join(prefix, name))), names):
                pass

    def upload_folder(self, local_dir: str | Path, prefix: str) -> None:
        """Copy a folder of this machine here, file by file. Raises FileNotFoundError if nothing is in it."""
        source = LocalStorage(str(Path(local_dir).absolute()))
        names = source.list("")
        if not names:
            raise FileNotFoundError(f"{local_dir} is empty or absent")
        for name in names:
            self.write(_join(prefix, name), source.read(name))


def open_storage(uri: str) -> Storage:
    """The storage behind a path, `file://`, `s3://` or `gs://` URI; a relative path is made absolute here.

    Object stores take endpoint and credentials from the usual environment variables. Raises UserError for any
    other scheme.
    """
    scheme, separator, _ = uri.partition("://")
    if not separator:
        return LocalStorage(str(Path(uri).expanduser().absolute()))
    parts = urlsplit(uri)
    if scheme == "file" and parts.netloc in ("", "localhost") and parts.path:
        return LocalStorage(str(Path(unquote(parts.path)).absolute()))
    if scheme in ("s3", "gs") and parts.netloc:
        from dav_ray.object_storage import ObjectStorage  # needs obstore, which a local run need not import

        return ObjectStorage(uri.rstrip("/"))
    raise UserError(f"run directory {uri!r}: must be a path, file:///path, s3://bucket/prefix or gs://bucket/prefix")


@dataclass(frozen=True)
class LocalStorage(Storage):
    """A folder on this machine, or on a file system that all nodes share. `uri` is its absolute path."""

    uri: str

    def read_versioned(self, path: str) -> tuple[bytes, Version]:
        data = self._target(path).read_bytes()
        return data, _content_version(data)

    def write(self, path: str, data: bytes) -> None:
        target = self._target(path)
        with _written_aside(target, data) as aside:
            os.replace(aside, target)

    def _create_new(self, path: str, data: bytes) -> Version:
        target = self._target(path)
        with _written_aside(target, data) as aside:
            try:
                os.link(aside, target)
            except FileExistsError:
                raise AlreadyExists(f"{target} exists") from None
        return _content_version(data)

    def replace(self, path: str, data: bytes, version: Version) -> Version:
        target = self._target(path)
        with _locked(target):
            if not target.exists() or self.read_versioned(path)[1] != version:
                raise Conflict(f"{target} has changed")
            self.write(path, data)
        return _content_version(data)

    def exists(self, path: str) -> bool:
        return self._target(path).is_file()

    def list(self, prefix: str) -> list[str]:
        found = []
        for folder, _, names in os.walk(self._target(prefix)):
            relative = PurePosixPath(os.path.relpath(folder, self.uri))
            found += [str(relative / name) for name in names if not _HIDDEN.fullmatch(name)]
        return sorted(found)

    def delete(self, path: str) -> None:
        self._target(path).unlink(missing_ok=True)

    def append_line(self, path: str, line: str) -> None:
        target = self._target(path)
        with _locked(target), open(target, "ab+") as file:
            _drop_torn_line(file)
            file.write(line_bytes(line))

    def _target(self, path: str) -> Path:
        return Path(self.uri, checked_path(path))


def checked_path(path: str) -> str:
    """The path without a trailing slash. Raises ValueError if it leaves the run directory."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts:
        raise ValueError(f"{path!r} is not a path inside the run directory")
    return "" if pure == PurePosixPath() else str(pure)


def _join(prefix: str, name: str) -> str:
    return str(PurePosixPath(prefix, name))


def _content_version(data: bytes) -> Version:
    return Version(hashlib.sha256(data).hexdigest())


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


@contextmanager
def _written_aside(target: Path, data: bytes) -> Iterator[Path]:
    """A durable file with this content beside the target; what the caller makes of it is made durable too."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
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


@contextmanager
def _locked(target: Path) -> Iterator[None]:
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


def _drop_torn_line(file: BinaryIO) -> None:
    """Cut off a last line whose writer died in the middle of it, lest the next line continue it."""
    if file.seek(0, os.SEEK_END) == 0:
        return
    file.seek(-1, os.SEEK_END)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)
