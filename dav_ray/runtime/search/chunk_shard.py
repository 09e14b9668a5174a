"""What becomes of a searched chunk: its table, its shard in the run directory, its scores. This needs no model and no
GPU: the next chunk is computed meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dav_ray.diffusion.masked.alphabet import Alphabet
from dav_ray.run_dir import shards
from dav_ray.run_dir.manifest_record import Shard
from dav_ray.run_dir.reward_columns import PREFIX, shown
from dav_ray.run_dir.storage.interface import Storage
from dav_ray.runtime.accepted import ChunkScores
from dav_ray.types import Chunk, Trajectories


def store(
    storage: Storage, chunk: Chunk, found: Trajectories, alphabet: Alphabet | None, rewards: Sequence[str]
) -> tuple[Any, Shard, ChunkScores]:
    """The table; its shard, which is written once this returns. found: on the host; rewards: their names. Raises what
    the storage raises."""
    table = shards.to_table(chunk, found, alphabet, rewards)
    data, sha256 = shards.encode(table)
    path = shards.shard_path(chunk.round, chunk.index, sha256)
    storage.write(path, data)
    scores = ChunkScores(
        chunk.trajectories,
        chunk.conditions,
        tuple(found.reward.tolist()),
        None if found.log_weight is None else tuple(found.log_weight.tolist()),
        tuple(found.ess.tolist()),
        found.cost.network / table.num_rows,
        {name: tuple(table.column(f"{PREFIX}{name}").to_pylist()) for name in shown(rewards)},
        None if found.choices is None else tuple(map(tuple, found.choices.mean(0).tolist())),
    )
    return table, Shard(path, sha256, chunk.index, table.num_rows, chunk.policy_version), scores
