"""Accepted trajectories <-> Parquet shards and Ray Data. One row per accepted trajectory.

Tensors are stored as little-endian bytes (latents float32, tokens and pixels uint8) with shape and type in the column's
metadata: any Parquet reader can open a shard, and Ray Data passes the column on untouched.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dav_ray.diffusion.masked.alphabet import Alphabet
from dav_ray.run_dir import reward_columns
from dav_ray.run_dir.arrays import stored, stored_sample
from dav_ray.run_dir.manifest import buffer_folder
from dav_ray.types import Chunk, Trajectories

if TYPE_CHECKING:
    from dav_ray.mstep.objective import Rows


def tensor_column(values: np.ndarray) -> pa.Array:
    """[n, ...] -> n binaries."""
    flat = np.ascontiguousarray(values)
    return pa.array([row.tobytes() for row in flat], pa.large_binary())


def tensor_field(name: str, values: np.ndarray) -> pa.Field:
    meta = {"shape": json.dumps(list(values.shape[1:])), "dtype": values.dtype.newbyteorder("<").str}
    return pa.field(name, pa.large_binary(), metadata=meta)


def read_tensors(table: pa.Table, name: str) -> np.ndarray:
    """The column [n, ...] back as an array of its own."""
    meta = table.schema.field(name).metadata
    shape, dtype = json.loads(meta[b"shape"]), np.dtype(meta[b"dtype"].decode())
    rows = [np.frombuffer(row, dtype).reshape(shape) for row in table.column(name).to_pylist()]
    return np.stack(rows) if rows else np.empty((0, *shape), dtype)


def to_table(
    chunk: Chunk, found: Trajectories, alphabet: Alphabet | None = None, rewards: Sequence[str] = ()
) -> pa.Table:
    """The rows of a chunk; their size does not grow with M.

    rewards: their names; reward/<name>: what each of several said of the sample, unweighted.

    sample: uint8, [H, W, 3] pixels or [L] tokens; states: [T+1, *event], x_T first, float32 latents or uint8 tokens;
    targets (where the search gives any): [T, ...] float32, or uint8 tokens; sequence: text, given the alphabet.
    """
    num = len(chunk.conditions)
    nfe = found.cost.network / num
    plain = {
        "round": pa.array([chunk.round] * num, pa.int64()),
        "trajectory": pa.array(chunk.trajectories, pa.int64()),
        "chunk": pa.array([chunk.index] * num, pa.int64()),
        "policy_version": pa.array([chunk.policy_version] * num, pa.int64()),
        "seed": pa.array([chunk.seed] * num, pa.int64()),
        "condition": pa.array(chunk.conditions, pa.string()),
        "reward": pa.array(found.reward.numpy(), pa.float64()),
        **({} if found.each is None else reward_columns.columns(rewards, found.each.numpy())),
        "log_weight": pa.array([None] * num if found.log_weight is None else found.log_weight.tolist(), pa.float64()),
        "ess": pa.array(found.ess.numpy(), pa.float64()),
        "nfe": pa.array([nfe] * num, pa.float64()),
    }
    tensors = {"sample": stored_sample(found.sample), "states": stored(found.states.transpose(0, 1))}
    if found.targets is not None:
        tensors["targets"] = stored(found.targets.transpose(0, 1))
    if alphabet is not None:
        plain["sequence"] = pa.array(alphabet.decode(tensors["sample"]), pa.string())
    fields = [pa.field(name, column.type) for name, column in plain.items()]
    fields += [tensor_field(name, values) for name, values in tensors.items()]
    columns = [*plain.values(), *(tensor_column(values) for values in tensors.values())]
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def to_rows(table: pa.Table, weights: dict[int, float]) -> Rows:
    """What the M-step needs of some rows; weights: W by trajectory number. Tokens stay uint8, as they are stored."""
    import torch

    from dav_ray.mstep.objective import Rows

    numbers = table.column("trajectory").to_pylist()
    return Rows(
        torch.from_numpy(read_tensors(table, "states")),
        torch.from_numpy(read_tensors(table, "targets")) if "targets" in table.column_names else None,
        tuple(table.column("condition").to_pylist()),
        torch.tensor([weights[n] for n in numbers], dtype=torch.float64),
        torch.ones(len(numbers), dtype=torch.bool),
        tuple(numbers),
    )


def encode(table: pa.Table) -> tuple[bytes, str]:
    """A shard's bytes and their sha256. The same rows give the same bytes."""
    file = pa.BufferOutputStream()
    pq.write_table(table, file, compression="zstd")
    data = file.getvalue().to_pybytes()
    return data, hashlib.sha256(data).hexdigest()


def decode(data: bytes) -> pa.Table:
    return pq.read_table(pa.BufferReader(data))


def shard_path(round: int, chunk: int, sha256: str) -> str:
    """A shard is named after its content: two writers of one chunk can't harm each other."""
    return f"{buffer_folder(round)}/chunk-{chunk:05d}-{sha256}.parquet"


def concat(tables: Sequence[pa.Table]) -> pa.Table:
    """Of one run; columns that an older release did not write are null there."""
    return pa.concat_tables(tables, promote_options="default").combine_chunks()
