"""A run directory, reached through one small interface: a folder that all nodes share, or an object store.

Paths are relative to the run directory, with forward slashes. Two of the writes are conditional, and all that
must not be lost rests on them: `create` (only if absent) and `replace` (only if unchanged since it was read).
An object that is written by `replace` is never also written by `write`, which asks no questions.

Locally, `create` is a hard link and `replace` a compare under a lock file beside the target; both hold across
the nodes of a shared file system that has links and `flock` (NFS 4 does). On an object store, which
`object_storage.py` reaches, both are conditional puts.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol
from urllib.parse import SplitResult, unquote, urlsplit

from dav_ray.errors import DavRayError, RunError, UserError
from dav_ray.local_files import beside, drop_torn_line, locked, named_failures, remove, written_aside

PARALLEL_READS = 16
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,253}[A-Za-z0-9]")
_HIDDEN = re.compile(r"\..+\.(tmp|lock)")
_ASIDE = re.compile(r"\..+\.tmp")


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
        return LocalStorage(os.path.abspath(os.path.expanduser(uri)))
    parts = _split(uri)
    if scheme == "file" and parts.netloc in ("", "localhost") and parts.path:
        return LocalStorage(str(Path(unquote(parts.path)).absolute()))
    if scheme in ("s3", "gs") and parts.netloc:
        from dav_ray.object_storage import ObjectStorage  # needs obstore, which a local run need not import

        return ObjectStorage(uri.rstrip("/"))
    raise UserError(f"run directory {uri!r}: must be a path, file:///path, s3://bucket/prefix or gs://bucket/prefix")


def _split(uri: str) -> SplitResult:
    """UserError for a URI that is none, or that holds credentials."""
    host, rule = uri.partition("://")[2].partition("/")[0], "allowed: a path, file:///path, s3://bucket/prefix"
    if "@" in host:
        shown = "names who may read it (before the @), which would be shown in logs"
        raise UserError(f"run directory: {shown}; allowed: s3://bucket/prefix, and credentials in the environment")
    try:
        parts = urlsplit(uri)
    except ValueError:
        raise UserError(f"run directory {uri!r}: is no URI; {rule}") from None
    if parts.scheme in ("s3", "gs") and (parts.query or parts.fragment):
        raise UserError(f"run directory {uri!r}: has a query; {rule}")
    if parts.scheme in ("s3", "gs") and host and not _BUCKET.fullmatch(host):
        raise UserError(f"run directory {uri!r}: has no name of a bucket; {rule}")
    return parts


@dataclass(frozen=True)
class LocalStorage(Storage):
    """A folder on this machine, or on a file system that all nodes share. `uri` is its absolute path.

    The methods raise more than the interface says: FileFault, a RunError of role `storage`.
    """

    uri: str

    def read_versioned(self, path: str) -> tuple[bytes, Version]:
        target = self._target(path)
        with named_failures(target):
            data = target.read_bytes()
        return data, _content_version(data)

    def write(self, path: str, data: bytes) -> None:
        target = self._target(path)
        with named_failures(target), written_aside(target, data) as aside:
            os.replace(aside, target)

    def _create_new(self, path: str, data: bytes) -> Version:
        target = self._target(path)
        with named_failures(target), written_aside(target, data) as aside:
            try:
                os.link(aside, target)
            except FileExistsError:
                raise AlreadyExists(f"{target} exists") from None
        return _content_version(data)

    def replace(self, path: str, data: bytes, version: Version) -> Version:
        target = self._target(path)
        # whoever is stopped while it has the lock stops the others: so it has it for a comparison and a rename
        with named_failures(target), written_aside(target, data) as aside, locked(target):
            if not target.exists() or self.read_versioned(path)[1] != version:
                raise Conflict(f"{target} has changed")
            os.replace(aside, target)
        return _content_version(data)

    def exists(self, path: str) -> bool:
        return self._target(path).is_file()

    def list(self, prefix: str) -> list[str]:
        found = []
        for folder, below, names in os.walk(self._target(prefix)):
            below[:] = [name for name in below if not _HIDDEN.fullmatch(name)]
            relative = PurePosixPath(os.path.relpath(folder, self.uri))
            found += [str(relative / name) for name in names if not _HIDDEN.fullmatch(name)]
        return sorted(found)

    def delete(self, path: str) -> None:
        target = self._target(path)
        with named_failures(target):
            target.unlink(missing_ok=True)

    def delete_folder(self, prefix: str) -> None:
        target = self._target(prefix)
        if not target.is_dir():
            return
        with named_failures(target):
            aside = beside(target)
            target.rename(aside)  # gone as a whole, or there as a whole
            shutil.rmtree(aside)

    def sweep_leftovers(self, older_than_s: float) -> int:
        before, swept = time.time() - older_than_s, 0
        for folder, below, names in os.walk(self.uri):
            for name in filter(_ASIDE.fullmatch, [*below, *names]):
                leftover = Path(folder, name)
                with contextlib.suppress(FileNotFoundError):  # its writer lives, and has just moved it
                    if leftover.stat().st_mtime < before:
                        remove(leftover)
                        swept += 1
            below[:] = [name for name in below if not _ASIDE.fullmatch(name)]
        return swept

    def append_line(self, path: str, line: str) -> None:
        target = self._target(path)
        with named_failures(target), locked(target), open(target, "ab+") as file:
            drop_torn_line(file)
            file.write(line_bytes(line))

    def _target(self, path: str) -> Path:
        return Path(self.uri, checked_path(path))


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
