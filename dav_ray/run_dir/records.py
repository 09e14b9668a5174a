"""Small files of a run directory: the marker that every node must see, events, metrics."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from dav_ray.errors import UserError
from dav_ray.redact import hidden
from dav_ray.run_dir.storage.interface import Storage
from dav_ray.strict import parse_object

if TYPE_CHECKING:  # pydantic and the rest are absent where a reward has an environment of its own
    import pyarrow as pa


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


class Tracker(Protocol):
    """Experiment trackers: `dav_ray.runtime.watch.trackers`."""

    def log(self, round: int, values: dict[str, float]) -> None: ...

    def evaluation(self, round: int, table: pa.Table, limit: int) -> None:
        """Shows at most `limit` samples of an evaluation's table."""
        ...


class Exporter(Protocol):
    """Who watches a run from outside: `dav_ray.runtime.watch.prometheus`."""

    def record(self, values: Mapping[str, float]) -> None: ...

    def event(self, name: str, fields: Mapping[str, Any]) -> None: ...

    def live(self, name: str, value: float, **tags: str) -> None: ...


class RunLog:
    """Appends to events.jsonl and metrics.jsonl; metrics go to the trackers too, all to the exporter."""

    def __init__(
        self, storage: Storage, epoch: int, trackers: Tracker | None = None, exporter: Exporter | None = None
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
        if self._trackers is not None:
            self._trackers.evaluation(round, table, limit)

    def live(self, name: str, value: float, **tags: str) -> None:
        """A number of the moment, for the exporter alone: kept nowhere."""
        if self._exporter is not None:
            self._exporter.live(name, value, **tags)

    def _append(self, path: str, record: dict[str, Any]) -> None:
        self._storage.append_line(path, json.dumps(hidden({"time": round(time.time(), 3), **record})))
