"""What a run's manifest says, and how it is read: a file that says anything else is named and refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from dav_ray.run_dir.storage.interface import checked_path
from dav_ray.strict import checked_fields, parse_json

Phase = Literal["search", "fit", "evaluate", "done"]


@dataclass(frozen=True)
class Shard:
    """One committed chunk: a Parquet file under its content's name, in the folder of its round."""

    path: str
    sha256: str
    chunk: int
    rows: int
    policy_version: int

    @staticmethod
    def from_fields(fields: Any) -> Shard:
        """As a manifest names it. ValueError saying what is wrong with it."""
        kinds = {"path": str, "sha256": str, "chunk": int, "rows": int, "policy_version": int}
        shard = Shard(**checked_fields(fields, kinds))
        if not checked_path(shard.path).startswith("buffer/"):
            raise ValueError(f"names a shard {shard.path[:60]!r}, which is not in buffer/")
        return shard


_KINDS = {
    **dict.fromkeys(("epoch", "round", "policy_version", "closed"), int),
    **dict.fromkeys(("shards", "ahead"), list),
    **dict.fromkeys(("phase", "config_sha256"), str),
    "versions": dict,
    "alpha": float,
}


@dataclass(frozen=True)
class Manifest:
    """The state of a run between two writes."""

    epoch: int  # the driver that owns the run; 0 before the first one
    round: int  # the open round, from 1
    phase: Phase
    policy_version: int
    shards: tuple[Shard, ...]  # of the open round, in chunk order
    closed: int  # the last closed round, 0 if none
    versions: dict[str, str]  # of the libraries that the owning driver runs with
    config_sha256: str
    ahead: tuple[Shard, ...] = ()  # of the round after the open one, in chunk order; absent in older manifests
    alpha: float | None = None  # what search.alpha came to where it is in standard deviations; else absent

    def to_json(self) -> bytes:
        fields = asdict(self)
        return to_json({name: value for name, value in fields.items() if name != "alpha" or value is not None})

    @staticmethod
    def from_json(data: bytes) -> Manifest:
        """ValueError saying what is wrong with it."""
        fields = checked_fields(parse_json(data), _KINDS, optional=("ahead", "alpha"))
        if fields["phase"] not in get_args(Phase) or fields["round"] < 1:
            raise ValueError(f"says round {fields['round']}, phase {fields['phase'][:60]}")
        if not all(isinstance(version, str) for version in fields["versions"].values()):
            raise ValueError("has versions that are no text")
        if not 0 < fields.get("alpha", 1.0) < math.inf:
            raise ValueError(f"says alpha {fields['alpha']}")
        shards, ahead = (
            tuple(map(Shard.from_fields, found)) for found in (fields.pop("shards"), fields.pop("ahead", ()))
        )
        return Manifest(shards=shards, ahead=ahead, **fields)

    def shards_of(self, round: int) -> tuple[Shard, ...]:
        """The committed shards of the open round or of the next one. ValueError for any other."""
        if round not in (self.round, self.round + 1):
            raise ValueError(f"round {round}: the manifest names the shards of {self.round} and {self.round + 1}")
        return self.shards if round == self.round else self.ahead


def buffer_folder(round: int) -> str:
    """Where the shards of a round lie."""
    return f"buffer/round={round:04d}"


def round_manifest_path(round: int) -> str:
    return f"manifests/round-{round:04d}.json"


def to_json(fields: Mapping[str, Any]) -> bytes:
    return (json.dumps(fields, sort_keys=True, indent=1) + "\n").encode()
