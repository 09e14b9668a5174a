"""From a path or URI to its storage."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from dav_ray.errors import UserError
from dav_ray.run_dir.storage.interface import Storage
from dav_ray.run_dir.storage.local import LocalStorage

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,253}[A-Za-z0-9]")


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
        from dav_ray.run_dir.storage.object_store import (
            ObjectStorage,  # needs obstore, which a local run need not import
        )

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


def absolute(run_dir: str) -> str:
    """The run directory as every process can use it, whatever its own working directory."""
    return run_dir.rstrip("/") if "://" in run_dir else os.path.abspath(os.path.expanduser(run_dir))
