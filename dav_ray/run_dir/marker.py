"""Checks that a run directory is shared: every node must see a file that the driver writes, the marker."""

from __future__ import annotations

from dav_ray.errors import RunError, UserError
from dav_ray.run_dir.storage.interface import Storage

MARKER = "marker"


def write_marker(storage: Storage) -> None:
    """Written by the driver before any work; each role's node must read it and write beside it."""
    storage.write(f"{MARKER}/driver", b"dav_ray")


def check_marker(storage: Storage, node: str) -> None:
    """UserError naming the node if it does not share the run directory."""
    try:
        seen = storage.read(f"{MARKER}/driver") == b"dav_ray"
        storage.write(f"{MARKER}/{node}", b"dav_ray")
        why = ""
    except (OSError, RunError) as error:
        seen, why = False, f" ({' '.join(str(error).split())})"
    if not seen:
        raise UserError(
            f"run directory {storage.uri}: node {node} can't read and write it{why}; "
            "allowed: a path that all nodes share, or s3://bucket/folder"
        )
