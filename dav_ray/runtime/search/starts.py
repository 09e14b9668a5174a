"""What the last round accepted, as a search worker reads it back: by that round's immutable manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dav_ray.config.partition import round_prompts
from dav_ray.config.schema import Config
from dav_ray.errors import RunError
from dav_ray.run_dir import shards
from dav_ray.run_dir.manifest import ManifestStore, Shard, round_manifest_path
from dav_ray.run_dir.reward_columns import read_each
from dav_ray.run_dir.storage.interface import Storage
from dav_ray.search.warm_start import Starts, assign
from dav_ray.search.weighting.temperature import number
from dav_ray.types import Chunk


@dataclass(frozen=True)
class Found:
    """The N samples that a round accepted, in the order of their trajectories; without the paths that led there."""

    conditions: tuple[str, ...]  # N
    x_0: Tensor  # [N, *event] float32 latents or uint8 tokens
    sample: Tensor  # [N, ...] as stored: uint8 pixels [H, W, 3] or tokens [L]
    reward: Tensor  # [N] float64
    ess: Tensor  # [N] float64
    each: Tensor  # [N, R] float64, of each reward; NaN where a shard does not tell


class LastRound:
    """Gives chunks their starts. Holds one round, which it reads when a chunk of the next one first asks."""

    def __init__(self, config: Config, storage: Storage) -> None:
        self._config, self._storage = config, storage
        self._held: tuple[int, Found, list[int | None]] | None = None  # round, what it found, who starts from which row

    def starts(self, chunk: Chunk, device: str) -> Starts | None:
        """None where no trajectory of the chunk has a start. RunError naming a shard that is absent or changed."""
        if chunk.round == 1 or self._config.search.warm_start == "off":
            return None
        if self._held is None or self._held[0] != chunk.round - 1:
            self._held = self._read(chunk)
        _, found, sources = self._held
        known = {i: row for i, n in enumerate(chunk.trajectories) if (row := sources[n]) is not None}
        if not known:
            return None
        rows = list(known.values())
        return Starts(
            tuple(known),
            _loaded(found.x_0[rows], pixels=False).to(device),
            _loaded(found.sample[rows], pixels=found.x_0.is_floating_point()).to(device),
            found.reward[rows],
            found.ess[rows],
            found.each[rows],
        )

    def _read(self, chunk: Chunk) -> tuple[int, Found, list[int | None]]:
        search, names = self._config.search, [reward.label for reward in self._config.reward]
        found = read(self._storage, chunk.round - 1, names)
        prompts, num = self._config.prompts, search.trajectories
        conditions = round_prompts(
            prompts, chunk.round, num, together=False, weights=prompts.weights, seed=self._config.seed
        )
        sources = assign(
            search.warm_start,
            conditions,
            found.conditions,
            found.reward,
            alpha=number(search.alpha, chunk.alpha),
            seed=chunk.seed,
            round=chunk.round,
        )
        return chunk.round - 1, found, sources


def read(storage: Storage, round: int, rewards: Sequence[str] = ()) -> Found:
    """A closed round; rewards: their names. Shard by shard, checksums verified, so that one chunk's paths are in memory
    at a time. RunError naming what is absent or changed."""
    store = ManifestStore(storage)
    try:
        record = store.round_manifest(round)
    except FileNotFoundError:
        raise RunError("storage", f"{storage.uri}/{round_manifest_path(round)} is absent") from None
    parts = [_shard(store.verify(Shard.from_fields(shard)), rewards) for shard in record["shards"]]
    numbers, conditions, *columns = zip(*parts, strict=True)
    order = np.argsort(np.concatenate(numbers))
    names = [name for part in conditions for name in part]
    numeric = (torch.from_numpy(np.concatenate(column)[order]) for column in columns)
    return Found(tuple(names[i] for i in order), *numeric)


def _shard(data: bytes, rewards: Sequence[str]) -> tuple[np.ndarray, list[str], *tuple[np.ndarray, ...]]:
    """trajectory, condition, x_0, sample, reward, ess, each reward's."""
    table = shards.decode(data)
    number, reward, ess = (table.column(name).to_numpy() for name in ("trajectory", "reward", "ess"))
    # a copy: a view would keep the states before it
    x_0 = shards.read_tensors(table, "states")[:, -1].copy()
    sample, each = shards.read_tensors(table, "sample"), read_each(table, rewards)
    return number, table.column("condition").to_pylist(), x_0, sample, reward, ess, each


def _loaded(stored: Tensor, *, pixels: bool) -> Tensor:
    """As a search has it: latents float32, tokens int64, images [K, 3, H, W] in [0, 1]."""
    if pixels:
        return stored.permute(0, 3, 1, 2).float() / 255
    return stored if stored.is_floating_point() else stored.long()
