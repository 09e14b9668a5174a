"""Committed chunks as the driver knows them: a few numbers each; the rows themselves stay in the object store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from dav_ray.errors import RunError
from dav_ray.run_dir import shards
from dav_ray.run_dir.manifest import ManifestStore, Shard, ShardLost
from dav_ray.run_dir.reward_columns import PREFIX, accepted_means, shown, with_columns
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.runtime.spent import Ledger, Spent
from dav_ray.search.weighting.weights import log_z, normalise
from dav_ray.types import Cost


@dataclass(frozen=True)
class ChunkScores:
    """What the driver keeps of a chunk's rows; sequences hold one entry per trajectory."""

    trajectories: Sequence[int]
    conditions: Sequence[str]
    rewards: Sequence[float]
    log_weights: Sequence[float] | None  # None where the selection carries no valid weight
    ess: Sequence[float]
    nfe: float  # network evaluations per trajectory
    each: Mapping[str, Sequence[float | None]] = field(default_factory=dict)  # of several rewards, by name
    choices: Sequence[Sequence[float]] | None = None  # [2, K] (`search.choices`); None where they were read back


@dataclass(frozen=True)
class SearchedChunk:
    """What a search worker returns beside the table: the chunk is in its shard, and not accepted yet."""

    shard: Shard
    scores: ChunkScores
    cost: Cost
    spent: Spent
    memory_gb: float  # most GPU memory of the worker so far; 0 without a GPU
    reward_bytes: int = 0  # of samples that were sent to rewards
    deviations: Mapping[str, float] = field(default_factory=dict)  # of golden scores, by reward, in the worker


@dataclass(frozen=True)
class Accepted:
    """A committed chunk. table: a reference to its rows."""

    table: Any
    shard: Shard
    scores: ChunkScores

    @property
    def index(self) -> int:
        return self.shard.chunk

    @property
    def trajectories(self) -> Sequence[int]:
        return self.scores.trajectories


@dataclass
class Tally:
    """What is kept of searched chunks as they come. rewards, rows: the sum, and of how many, those of before a restart
    too."""

    rewards: float
    rows: int
    cost: Cost = Cost()
    memory_gb: float = 0.0
    sent: int = 0  # bytes to rewards
    missed: dict[str, float] = field(default_factory=dict)  # by reward: how far a worker was off the golden scores
    ledger: Ledger = field(default_factory=Ledger)

    @classmethod
    def of(cls, accepted: Iterable[Accepted]) -> Tally:
        """Chunks that were accepted before."""
        scores = [found.scores.rewards for found in accepted]
        return cls(sum(map(sum, scores)), sum(map(len, scores)))

    def add(self, found: SearchedChunk) -> None:
        self.rewards, self.rows = self.rewards + sum(found.scores.rewards), self.rows + len(found.scores.rewards)
        self.cost, self.memory_gb = self.cost + found.cost, max(self.memory_gb, found.memory_gb)
        self.sent += found.reward_bytes
        self.missed |= {name: max(gap, self.missed.get(name, 0.0)) for name, gap in found.deviations.items()}
        self.ledger.add(found.spent, found.cost)

    def of_rewards(self, searched: int) -> dict[str, float]:
        """Metrics; searched: accepted samples."""
        golden = {f"golden/deviation/{name}": gap for name, gap in self.missed.items()}
        return {"search/reward_bytes_per_sample": self.sent / max(searched, 1), **golden}

    @property
    def mean(self) -> float | None:
        return self.rewards / self.rows if self.rows else None


def load_shard(uri: str, shard: Shard, rewards: Sequence[str] = ()) -> tuple[pa.Table | None, ChunkScores | ShardLost]:
    """A committed shard, its checksum verified, and its scores; or what has become of it. rewards: their names."""
    try:
        table = with_columns(shards.decode(ManifestStore(open_storage(uri)).verify(shard)), rewards)
    except ShardLost as lost:
        return None, lost
    names = ("trajectory", "condition", "reward", "log_weight", "ess", "nfe")
    column = {name: table.column(name).to_pylist() for name in names}
    weights = None if any(w is None for w in column["log_weight"]) else column["log_weight"]
    return table, ChunkScores(
        column["trajectory"],
        column["condition"],
        column["reward"],
        weights,
        column["ess"],
        column["nfe"][0],
        {name: table.column(f"{PREFIX}{name}").to_pylist() for name in shown(rewards)},
    )


def log_weights(found: Sequence[Accepted]) -> list[float] | None:
    """log W of all trajectories; None where the selection carries no valid weight."""
    if any(f.scores.log_weights is None for f in found):
        return None
    return [w for f in found for w in f.scores.log_weights or ()]


def fit_weights(found: Sequence[Accepted], mode: str) -> dict[int, float]:
    """W_i by trajectory number: 1 (`none`), or normalised trajectory weights; 0 where the reward is minus infinity."""
    numbers = [n for f in found for n in f.trajectories]
    if mode == "none":
        rewards = [r for f in found for r in f.scores.rewards]
        return {n: float(r > -np.inf) for n, r in zip(numbers, rewards, strict=True)}
    weights = log_weights(found)
    if weights is None:
        raise RunError("search", "these trajectories carry no weight (mstep.weights = trajectory)")
    return dict(zip(numbers, normalise(weights, [c for f in found for c in f.scores.conditions]), strict=True))


def search_metrics(found: Sequence[Accepted], cost: Cost, seconds: float, searched: int) -> dict[str, float]:
    """The round's search in numbers. searched: trajectories found in `seconds` at `cost`, not before a restart."""
    rewards = np.array([r for f in found for r in f.scores.rewards])
    finite = rewards[np.isfinite(rewards)]
    values = {
        "reward/mean": float(finite.mean()) if len(finite) else float("nan"),
        "reward/std": float(finite.std()) if len(finite) else float("nan"),
        "reward/infeasible": float(len(rewards) - len(finite)),
        "search/ess": float(np.mean([e for f in found for e in f.scores.ess])),
        "search/nfe_per_sample": float(
            np.average([f.scores.nfe for f in found], weights=[len(f.scores.rewards) for f in found])
        ),
        "search/reference_per_sample": cost.reference / max(searched, 1),
        "search/reward_calls": float(cost.reward),
        "search/samples_per_s": searched / max(seconds, 1e-9),
        "time/estep_s": seconds,
    }
    values |= accepted_means(
        {name: [v for f in found for v in f.scores.each.get(name, ())] for name in _names_of(found)}
    )
    weights = log_weights(found)
    if weights is not None:
        conditions = [c for f in found for c in f.scores.conditions]
        w = np.array(normalise(weights, conditions))
        values["search/weight_ess"] = float(w.sum() ** 2 / max((w * w).sum(), 1e-300))
        values["search/log_z"] = log_z(weights, conditions)
    return values


def _names_of(found: Sequence[Accepted]) -> list[str]:
    """Names of rewards of which a chunk has values of their own."""
    return list(dict.fromkeys(name for f in found for name in f.scores.each))
