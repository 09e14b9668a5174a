"""A run directory in a folder of this machine, or of a file system that all nodes share."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dav_ray.run_dir.storage.interface import AlreadyExists, Conflict, Storage, Version, checked_path, line_bytes
from dav_ray.run_dir.storage.local_files import beside, drop_torn_line, locked, named_failures, remove, written_aside

_HIDDEN = re.compile(r"\..+\.(tmp|lock)")
_ASIDE = re.compile(r"\..+\.tmp")


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


def _content_version(data: bytes) -> Version:
    return Version(hashlib.sha256(data).hexdigest())
