"""A run directory in a bucket: conditional puts for links and locks, numbered parts for appending."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, PreconditionError
from obstore.store import from_url

from dav_ray.errors import RunError, UserError
from dav_ray.run_dir.storage.interface import (
    AlreadyExists,
    Conflict,
    Storage,
    Version,
    checked_path,
    line_bytes,
    line_parts,
)

if TYPE_CHECKING:
    from obstore import PutMode
    from obstore.store import ObjectStore

REQUEST_TIMEOUT = timedelta(seconds=120)  # one request, body included
RETRY_TIMEOUT = timedelta(seconds=180)  # retries of one request by obstore: ten, in a few seconds where they fail
OUTAGE_S = 120.0  # for which a store may be away in the middle of a run
PAUSE_S = 1.0

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class ObjectStorage(Storage):
    """A prefix of a bucket, through `obstore`. S3 is tested; Google's goes through the same calls, untested.

    The methods raise more than the interface says: RunError (role `storage`) if the store can't be reached (for
    OUTAGE_S, once it was) or refuses, UserError if there is no such bucket.
    """

    uri: str

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.uri,)  # neither the connection nor its credentials travel

    @cached_property
    def _store(self) -> ObjectStore:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
        return from_url(
            self.uri,
            client_options={"allow_http": endpoint.startswith("http://"), "timeout": REQUEST_TIMEOUT},
            retry_config={"retry_timeout": RETRY_TIMEOUT},
        )

    def read_versioned(self, path: str) -> tuple[bytes, Version]:
        def fetch() -> tuple[bytes, Version]:
            result = self._store.get(checked_path(path))
            return result.bytes().to_bytes(), Version(result.meta["e_tag"], result.meta["version"])

        with self._failures(path):
            return self._ask(fetch)

    def write(self, path: str, data: bytes) -> None:
        with self._failures(path):
            try:
                self._ask(lambda: self._store.put(checked_path(path), data))
            except FileNotFoundError:
                raise UserError(f"run directory {self.uri!r}: the bucket does not exist") from None

    def _create_new(self, path: str, data: bytes) -> Version:
        with self._failures(path):
            try:
                return self._put_if(path, data, "create")
            except AlreadyExistsError:
                raise AlreadyExists(f"{self.uri}/{path} exists") from None
            except FileNotFoundError:
                raise UserError(f"run directory {self.uri!r}: the bucket does not exist") from None

    def replace(self, path: str, data: bytes, version: Version) -> Version:
        expected: PutMode = {}
        if version.tag is not None:
            expected["e_tag"] = version.tag
        if version.generation is not None:
            expected["version"] = version.generation
        with self._failures(path):
            try:
                return self._put_if(path, data, expected)
            # 412 stale; 409 another conditional put is under way; 404 deleted meanwhile
            except (PreconditionError, AlreadyExistsError, FileNotFoundError):
                raise Conflict(f"{self.uri}/{path} has changed") from None

    def exists(self, path: str) -> bool:
        with self._failures(path):
            try:
                self._ask(lambda: self._store.head(checked_path(path)))
            except FileNotFoundError:
                return False
        return True

    def list(self, prefix: str) -> list[str]:
        with self._failures(prefix):
            found = self._ask(lambda: self._store.list(checked_path(prefix) or None).collect())
        return sorted(meta["path"] for meta in found)

    def delete(self, path: str) -> None:
        with self._failures(path):
            try:
                self._ask(lambda: self._store.delete(checked_path(path)))
            except FileNotFoundError:  # S3 does not mind, Google does
                return

    def delete_folder(self, prefix: str) -> None:
        with self._failures(prefix):
            if paths := self.list(prefix):
                self._ask(lambda: self._store.delete(paths))

    def append_line(self, path: str, line: str) -> None:
        """Write the line as the next numbered part.

        A put whose answer is lost may leave the line twice, but no line is lost: two writers that race with
        the same line must both find it there, so identical content does not count as written.
        """
        data = line_bytes(line)
        number = self._next_part.get(path) or _last_part(self, path) + 1
        while True:
            try:
                self._create_new(_part_path(path, number), data)
                break
            except AlreadyExists:  # another writer took the number
                number = max(number, _last_part(self, path)) + 1
        self._next_part[path] = number + 1

    @cached_property
    def _next_part(self) -> dict[str, int]:
        return {}

    def _put_if(self, path: str, data: bytes, mode: PutMode) -> Version:
        # a multipart upload can't carry the condition
        result = self._ask(lambda: self._store.put(checked_path(path), data, mode=mode, use_multipart=False))
        return Version(result["e_tag"], result["version"])

    @cached_property
    def _reached(self) -> threading.Event:
        return threading.Event()

    def _ask(self, request: Callable[[], Answer]) -> Answer:
        """What the store answers. One that goes away is asked again for OUTAGE_S; one that was never there is likely to
        be the user's mistake. Here and not in obstore, whose waits no signal ends."""
        start = time.monotonic()
        while True:
            try:
                answer = request()
                self._reached.set()
                return answer
            except GenericError:  # no connection, no answer, the server's own failure
                if not self._reached.is_set() or time.monotonic() - start > OUTAGE_S:
                    raise
                time.sleep(PAUSE_S)

    @contextmanager
    def _failures(self, path: str) -> Iterator[None]:
        try:
            yield
        except BaseError as error:
            reason = str(error).partition("\n")[0]  # the rest is a debug dump
            raise RunError("storage", f"{self.uri}/{path}: {reason}") from error


def _part_path(path: str, number: int) -> str:
    pure = PurePosixPath(path)
    return str(pure.with_suffix("") / f"part-{number:06d}{pure.suffix}")


def _last_part(storage: Storage, path: str) -> int:
    return max((number for number, _ in line_parts(storage, path)), default=0)
