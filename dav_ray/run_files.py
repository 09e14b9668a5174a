"""Small files of a run directory: the marker that every node must see, events, metrics."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dav_ray.errors import RunError, UserError
from dav_ray.parsing import parse_object
from dav_ray.secrets import hidden
from dav_ray.storage import Storage, open_storage

if TYPE_CHECKING:  # pydantic and the rest are absent where a reward has an environment of its own
    import pyarrow as pa

    from dav_ray.config import Config
    from dav_ray.manifest import Manifest
    from dav_ray.track import Trackers

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


@dataclass(frozen=True)
class StoredRun:
    """A run directory that holds a run."""

    storage: Storage
    manifest: Manifest
    config: Config


def read_run(run_dir: str) -> StoredRun:
    """UserError if there is no run at `run_dir`."""
    from dav_ray.manifest import ManifestStore
    from dav_ray.preflight import read_run_file
    from dav_ray.recipe import from_yaml

    storage = open_storage(run_dir)
    manifest = ManifestStore(storage).load()
    if manifest is None:
        raise UserError(f"{run_dir}: is no run directory (it has no manifest.json)")
    text = read_run_file(run_dir, "config.yaml")
    if text is None:
        raise UserError(f"{run_dir}: is no run directory (it has no config.yaml)")
    recipe = from_yaml(text, f"{run_dir}/config.yaml")
    return StoredRun(storage, manifest, recipe.config)


def metric_rows(lines: Iterable[str]) -> dict[tuple[int, str], dict[str, Any]]:
    """The last line of each (round, role) of metrics.jsonl. UserError naming a line that is no such record."""
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = parse_object(line)
        except ValueError as error:
            raise UserError(f"metrics.jsonl: line {number} {error}") from None
        if type(row.get("round")) is not int or not isinstance(row.get("role"), str):
            raise UserError(f"metrics.jsonl: line {number} has no round (a whole number) or no role (text)")
        rows[row["round"], row["role"]] = row
    return rows


class Exporter(Protocol):
    """Who watches a run from outside: `dav_ray.prometheus`."""

    def record(self, values: Mapping[str, float]) -> None: ...

    def event(self, name: str, fields: Mapping[str, Any]) -> None: ...

    def live(self, name: str, value: float, **tags: str) -> None: ...


class RunLog:
    """Appends to events.jsonl and metrics.jsonl; metrics go to the trackers too, all to the exporter."""

    def __init__(
        self, storage: Storage, epoch: int, trackers: Trackers | None = None, exporter: Exporter | None = None
    ) -> None:
        self._storage, self._epoch, self._trackers, self._exporter = storage, epoch, trackers, exporter

    def event(self, name: str, **fields: Any) -> None:
        """What happened, for instance `worker_lost`, with whatever identifies it."""
        self._append("events.jsonl", {"event": name, "epoch": self._epoch, **fields})
        if self._exporter is not None:
            self._exporter.event(name, fields)

    def metrics(self, round: int, role: str, values: dict[str, float]) -> None:
        self._append("metrics.jsonl", {"round": round, "role": role, **values})
        if self._trackers is not None:
            self._trackers.log(round, values)
        if self._exporter is not None:
            self._exporter.record(values)

    def samples(self, round: int, table: pa.Table, limit: int) -> None:
        """At most `limit` rows of an evaluation, for the trackers alone."""
        if self._trackers is not None and self._trackers.wanted:
            from dav_ray.shown_samples import ShownSamples

            self._trackers.samples(round, ShownSamples.of(table, limit))

    def live(self, name: str, value: float, **tags: str) -> None:
        """A number of the moment, for the exporter alone: kept nowhere."""
        if self._exporter is not None:
            self._exporter.live(name, value, **tags)

    def _append(self, path: str, record: dict[str, Any]) -> None:
        self._storage.append_line(path, json.dumps(hidden({"time": round(time.time(), 3), **record})))
