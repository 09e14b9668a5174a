"""Accepted trajectories as tables and bytes, and back."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dav_ray.diffusion.masked.alphabet import Alphabet
from dav_ray.run_dir import shards
from dav_ray.run_dir.arrays import pixels
from dav_ray.types import Chunk, Cost, Trajectories

T, B, EVENT = 3, 4, (2, 5, 5)
CHUNK = Chunk(7, 2, 12, 1, (8, 9, 10, 11), ("one", "", "zwölf", "one"))


def found(targets: bool = False, seed: int = 0) -> Trajectories:
    generator = torch.Generator().manual_seed(seed)
    return Trajectories(
        states=torch.randn((T + 1, B, *EVENT), generator=generator),
        targets=torch.randn((T, B, *EVENT), generator=generator) if targets else None,
        sample=torch.rand((B, 3, 6, 7), generator=generator),
        reward=torch.tensor([1.5, -math.inf, 0.1, 1e-300], dtype=torch.float64),
        log_weight=torch.tensor([0.1, -math.inf, 2.0, 1 / 3], dtype=torch.float64),
        ess=torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64),
        cost=Cost(network=80, backward=20, reference=12, reward=44),
    )


def test_a_shard_holds_every_number_bit_by_bit() -> None:
    trajectories = found(targets=True)
    data, sha256 = shards.encode(shards.to_table(CHUNK, trajectories))
    table = shards.decode(data)
    assert trajectories.targets is not None and trajectories.log_weight is not None

    assert hashlib.sha256(data).hexdigest() == sha256
    assert np.array_equal(shards.read_tensors(table, "states"), trajectories.states.transpose(0, 1).numpy())
    assert np.array_equal(shards.read_tensors(table, "targets"), trajectories.targets.transpose(0, 1).numpy())
    columns = {
        "round": [2] * B,
        "trajectory": [8, 9, 10, 11],
        "chunk": [12] * B,
        "policy_version": [1] * B,
        "seed": [7] * B,
        "condition": ["one", "", "zwölf", "one"],
        "reward": trajectories.reward.tolist(),
        "log_weight": trajectories.log_weight.tolist(),
        "ess": [1.0, 2.0, 3.0, 4.0],
        "nfe": [80 / B] * B,
    }
    assert table.select(list(columns)).to_pydict() == columns


def test_samples_are_stored_as_pixels() -> None:
    trajectories = replace(found(), sample=torch.tensor([0.0, 0.5, 1.0, 2.0]).reshape(B, 1, 1, 1).expand(B, 3, 6, 7))
    sample = shards.read_tensors(shards.to_table(CHUNK, trajectories), "sample")

    assert sample.shape == (B, 6, 7, 3) and sample.dtype == np.uint8
    assert [int(v) for v in sample[:, 0, 0, 0]] == [0, 128, 255, 255]


def test_pixels_keep_channels_and_rows_apart() -> None:
    image = torch.arange(2 * 3 * 4, dtype=torch.float32).reshape(1, 3, 2, 4) / 255

    assert np.array_equal(pixels(image)[0], np.arange(24).reshape(3, 2, 4).transpose(1, 2, 0))


def test_a_selection_without_weights_has_none() -> None:
    table = shards.to_table(CHUNK, replace(found(), log_weight=None))

    assert table.column("log_weight").to_pylist() == [None] * B
    assert "targets" not in table.column_names


def test_the_same_rows_give_the_same_bytes() -> None:
    data, sha256 = shards.encode(shards.to_table(CHUNK, found()))
    again, _ = shards.encode(shards.to_table(CHUNK, found()))
    other, other_sha256 = shards.encode(shards.to_table(CHUNK, found(seed=1)))

    assert again == data
    assert other != data and other_sha256 != sha256
    assert shards.encode(shards.decode(data))[0] == data


def test_a_row_takes_the_bytes_of_its_tensor_and_no_more() -> None:
    table = shards.to_table(CHUNK, found())

    assert {len(row) for row in table.column("states").to_pylist()} == {(T + 1) * math.prod(EVENT) * 4}
    assert {len(row) for row in table.column("sample").to_pylist()} == {6 * 7 * 3}


def test_shards_are_named_after_their_content() -> None:
    assert shards.shard_path(3, 12, "abc") == "buffer/round=0003/chunk-00012-abc.parquet"


@pytest.mark.parametrize("targets", [False, True])
def test_the_m_step_gets_rows_with_their_own_weights(targets: bool) -> None:
    trajectories = found(targets)
    tables = [shards.to_table(CHUNK, trajectories).slice(2, 2), shards.to_table(CHUNK, trajectories).slice(0, 1)]
    rows = shards.to_rows(shards.concat(tables), {8: 0.5, 9: 9.0, 10: 1.0, 11: 2.0})

    assert rows.weights.tolist() == [1.0, 2.0, 0.5]
    assert rows.conditions == ("zwölf", "one", "one")
    assert rows.real.tolist() == [True] * 3
    assert rows.numbers == (10, 11, 8)
    assert torch.equal(rows.states, trajectories.states[:, [2, 3, 0]].transpose(0, 1))
    if trajectories.targets is None:
        assert rows.targets is None
    else:
        assert rows.targets is not None
        assert torch.equal(rows.targets, trajectories.targets[:, [2, 3, 0]].transpose(0, 1))


def test_arrays_read_back_are_the_readers_own() -> None:
    states = shards.read_tensors(shards.to_table(CHUNK, found()), "states")
    states += 1  # a view of the table's memory would refuse

    assert shards.read_tensors(shards.to_table(CHUNK, found()), "states")[0, 0, 0, 0, 0] == states[0, 0, 0, 0, 0] - 1


def test_no_rows_keep_their_shape() -> None:
    table = shards.to_table(CHUNK, found()).slice(0, 0)

    assert shards.read_tensors(table, "states").shape == (0, T + 1, *EVENT)


LENGTH, DNA = 6, Alphabet.of("dna")


def found_tokens(targets: str | None = None) -> Trajectories:
    """Sequences of DNA, the mask being 4; targets: None, tokens or soft."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randint(0, 5, (T + 1, B, LENGTH), generator=generator)
    states[0], states[-1] = 4, states[-1] % 4
    soft = torch.rand((T, B, LENGTH, 5), generator=generator)
    kinds = {None: None, "tokens": states[1:], "soft": soft}
    return replace(found(), states=states, sample=states[-1], targets=kinds[targets])


@pytest.mark.parametrize("targets", [None, "tokens", "soft"])
def test_tokens_are_stored_as_bytes_and_come_back(targets: str | None) -> None:
    trajectories = found_tokens(targets)
    table = shards.decode(shards.encode(shards.to_table(CHUNK, trajectories, DNA))[0])
    rows = shards.to_rows(table, dict.fromkeys(CHUNK.trajectories, 1.0))

    assert {len(row) for row in table.column("states").to_pylist()} == {(T + 1) * LENGTH}
    assert rows.states.dtype == torch.uint8
    assert torch.equal(rows.states.long(), trajectories.states.transpose(0, 1))
    assert np.array_equal(shards.read_tensors(table, "sample"), trajectories.sample.numpy())
    if trajectories.targets is None:
        assert rows.targets is None
    else:
        assert rows.targets is not None
        assert rows.targets.dtype == (torch.uint8 if targets == "tokens" else torch.float32)
        assert torch.equal(rows.targets.to(trajectories.targets.dtype), trajectories.targets.transpose(0, 1))


def test_sequences_can_be_read_as_text() -> None:
    trajectories = found_tokens()
    table = shards.to_table(CHUNK, trajectories, DNA)

    texts = ["".join("ACGT"[token] for token in row) for row in trajectories.sample.tolist()]
    assert table.column("sequence").to_pylist() == texts
    assert "sequence" not in shards.to_table(CHUNK, found()).column_names


def test_the_same_sequences_give_the_same_bytes() -> None:
    assert shards.encode(shards.to_table(CHUNK, found_tokens("soft"), DNA)) == shards.encode(
        shards.to_table(CHUNK, found_tokens("soft"), DNA)
    )


def test_a_shard_of_images_keeps_its_columns() -> None:
    """Runs that were begun with an older version go on: their shards have these."""
    names = "round trajectory chunk policy_version seed condition reward log_weight ess nfe sample states targets"
    table = shards.to_table(CHUNK, found(targets=True))

    assert table.column_names == names.split()
    meta = {name: table.schema.field(name).metadata[b"dtype"] for name in ("sample", "states", "targets")}
    assert meta == {"sample": b"|u1", "states": b"<f4", "targets": b"<f4"}
