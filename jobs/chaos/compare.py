"""What must be the same in a run with faults as in the undisturbed one; every difference is a line of text."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dav_ray.run_dir.manifest import MANIFEST, round_manifest_path

FREE = {"epoch", "versions", "config_sha256"}  # of the manifest: who ran it, and the overlap
TIMES = re.compile(r"(time|util|busy|memory)/.*|.*_per_s")  # measured by the clock


def differences(run: Path, reference: Path) -> list[str]:
    return [*_manifests(run, reference), *_files(run, reference), *_rows(run), *_lines(run, reference)]


def _manifests(run: Path, reference: Path) -> Iterator[str]:
    mine, theirs = (_json(folder / MANIFEST) for folder in (run, reference))
    for key in sorted((mine.keys() | theirs.keys()) - FREE):
        if mine.get(key) != theirs.get(key):
            yield f"{MANIFEST}: {key} is {mine.get(key)}, not {theirs.get(key)}"
    if mine["phase"] != "done":
        yield f"{MANIFEST}: phase {mine['phase']}"
    for number in range(1, theirs["closed"] + 1):
        path = round_manifest_path(number)
        mine_, theirs_ = (_untimed_round(folder / path) for folder in (run, reference))
        for key in sorted(mine_.keys() | theirs_.keys()):
            if mine_.get(key) != theirs_.get(key):
                yield f"{path}: {key} is {mine_.get(key)}, not {theirs_.get(key)}"


def _files(run: Path, reference: Path) -> Iterator[str]:
    """Shards, policies with their optimizers, evaluations: the same names and the same bytes."""
    for folder in ("buffer", "policy", "evaluate"):
        mine, theirs = (_hashes(place / folder) for place in (run, reference))
        for name in sorted(mine.keys() | theirs.keys()):
            if name not in theirs:
                yield f"{folder}/{name}: an orphan"
            elif name not in mine:
                yield f"{folder}/{name}: absent"
            elif mine[name] != theirs[name]:
                yield f"{folder}/{name}: other bytes"


def _rows(run: Path) -> Iterator[str]:
    """Every trajectory is accepted once in each round, and shards are what their names say."""
    for file in sorted((run / "manifests").glob("*.json")):
        numbers: list[int] = []
        for shard in _json(file)["shards"]:
            place = run / shard["path"]
            if not place.exists() or hashlib.sha256(place.read_bytes()).hexdigest() != shard["sha256"]:
                yield f"{shard['path']}: not what {file.name} names"
                continue
            numbers += pq.read_table(place, columns=["trajectory"]).column(0).to_pylist()
        if sorted(numbers) != list(range(len(numbers))):
            yield f"{file.name}: trajectories {sorted(numbers)}"


def _lines(run: Path, reference: Path) -> Iterator[str]:
    """No line is torn; metrics, last line of each round and role, are the same but for times and costs of a restart."""
    found: list[dict[tuple[int, str], dict[str, Any]]] = []
    for folder in (run, reference):
        for name in ("events.jsonl", "metrics.jsonl"):
            text = (folder / name).read_text()
            if not text.endswith("\n"):
                yield f"{folder.name}/{name}: the last line is torn"
            for number, line in enumerate(text.splitlines(), 1):
                try:
                    json.loads(line)
                except ValueError:
                    yield f"{folder.name}/{name}: line {number} is torn"
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        found.append({(record["round"], record["role"]): record for record in records})
    mine, theirs = found
    if mine.keys() != theirs.keys():
        yield f"metrics.jsonl: of {sorted(mine.keys() ^ theirs.keys())} there is a line in one run only"
    for key in sorted(mine.keys() & theirs.keys()):
        a, b = _untimed(mine[key]), _untimed(theirs[key])
        if a != b:
            yield f"metrics.jsonl: {key} differs in {sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))}"


def _untimed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Calls of the network and the reward are counted by each driver for itself."""
    own = {"time", "search/reference_per_sample", "search/reward_calls"}
    return {key: value for key, value in values.items() if key not in own and not TIMES.fullmatch(key)}


def _untimed_round(file: Path) -> dict[str, Any]:
    record = _json(file) if file.exists() else {}
    return {**record, "summary": _untimed(record.get("summary", {}))}


def _hashes(folder: Path) -> dict[str, str]:
    """By path; what a killed writer left beside its file does not count."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())
