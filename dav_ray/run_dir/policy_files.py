"""Where a run's policies lie, and which of them are there. Imports no torch: it is asked before anything starts."""

from __future__ import annotations

import re

from dav_ray.run_dir.storage.interface import Storage

OPTIMIZER_FILE = "optimizer.safetensors"
_VERSION = re.compile(r"policy/v(\d+)/")


def folder(version: int) -> str:
    return f"policy/v{version:04d}"


def versions(storage: Storage) -> list[int]:
    """The versions that are stored, ascending: old ones may have been deleted (`retain.last`)."""
    found = {_VERSION.match(path) for path in storage.list("policy")}
    return sorted({int(match[1]) for match in found if match})
