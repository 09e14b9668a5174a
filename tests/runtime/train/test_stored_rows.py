"""What a rank reads where its dataset was lost: the same rows, in the same order, from the shards."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from dav_ray.errors import RunError
from dav_ray.run_dir import shards
from dav_ray.run_dir.manifest import Shard
from dav_ray.run_dir.storage.interface import Storage
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.runtime.train.mailbox import Share
from dav_ray.runtime.train.rank import stored_rows


@pytest.fixture
def place(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


def shard(place: Storage, chunk: int, numbers: list[int]) -> Shard:
    data, sha256 = shards.encode(pa.table({"trajectory": numbers}))
    path = shards.shard_path(1, chunk, sha256)
    place.write(path, data)
    return Shard(path, sha256, chunk, len(numbers), 0)


@pytest.mark.parametrize("first, end, numbers", [(0, 3, [0, 1, 2]), (3, 7, [3, 4, 5, 6]), (2, 4, [2, 3])])
def test_a_share_may_begin_and_end_within_a_shard(place: Storage, first: int, end: int, numbers: list[int]) -> None:
    shards = tuple(shard(place, i, part) for i, part in enumerate(([0, 1, 2], [3, 4, 5], [6])))
    table = stored_rows(place, Share(None, shards, first, end, {}))
    assert table.column("trajectory").to_pylist() == numbers


def test_a_shard_that_is_not_what_was_committed_is_no_rows(place: Storage) -> None:
    one = shard(place, 0, [0, 1])
    place.write(one.path, b"something else")
    with pytest.raises(RunError, match="sha256"):
        stored_rows(place, Share(None, (one,), 0, 1, {}))
