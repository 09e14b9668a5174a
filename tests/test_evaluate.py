"""The measures of held-out samples, by hand."""

from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor

from dav_ray import buffer
from dav_ray.diffusion.gaussian import GaussianKernel
from dav_ray.evaluate import Judges, measure, one_line, pairwise_distance, summarise
from dav_ray.noise import PipelineNoise
from dav_ray.rewards.base import local_scorer
from dav_ray.rewards.colour import Brightness, TargetColour
from dav_ray.search.base import ancestral
from dav_ray.types import EvaluationChunk
from tests.toy import Toy


@pytest.mark.parametrize("num, scale", [(2, 1.0), (7, 1.0), (40, 1e-3), (40, 1e3)])
def test_pairwise_distance_is_the_mean_over_distinct_pairs(num: int, scale: float) -> None:
    x = scale * torch.randn((num, 5), generator=torch.Generator().manual_seed(0)) + 1
    expected = torch.pdist(x.double()).mean()

    assert pairwise_distance(x.numpy()) == pytest.approx(float(expected), rel=1e-4)


def test_pairwise_distance_of_few_or_equal_rows_is_zero() -> None:
    assert pairwise_distance(np.ones((1, 5), np.float32)) == 0.0
    assert pairwise_distance(np.ones((0, 5), np.float32)) == 0.0
    assert pairwise_distance(np.full((4, 5), 0.1, np.float32)) == pytest.approx(0.0, abs=1e-6)


def table(kl: list[float | None]) -> pa.Table:
    features = np.array([[0, 0], [3, 4], [0, 0], [6, 8]], np.float32)
    columns: dict[str, Any] = {
        "condition": pa.array(["a", "a", "b", "c"]),
        "reward": pa.array([1.0, 2.0, 3.0, 6.0]),
        "heldout/colour": pa.array([0.0, -1.0, -1.0, 0.0]),
        "kl": pa.array(kl, pa.float64()),
    }
    fields = [pa.field(name, column.type) for name, column in columns.items()]
    schema = pa.schema([*fields, buffer.tensor_field("features", features)])
    return pa.Table.from_arrays([*columns.values(), buffer.tensor_column(features)], schema=schema)


def test_summary() -> None:
    """Diversity within a prompt is over prompts that have a pair: here one, at distance 5."""
    assert summarise(table([2.0, None, 4.0, None])) == pytest.approx(
        {
            "evaluate/reward_mean": 3.0,
            "evaluate/reward_std": np.sqrt((4 + 1 + 0 + 9) / 4),
            "heldout/colour": -0.5,
            "heldout/kl": 3.0,
            "diversity/features": np.mean([5, 0, 10, 5, 5, 10]),
            "diversity/within_prompt": 5.0,
        }
    )
    assert "heldout/kl" not in summarise(table([None] * 4))


def test_the_line_for_people() -> None:
    metrics = {"evaluate/reward_mean": 0.51, "evaluate/reward_std": 0.2, "heldout/kl": 2.0, "diversity/features": 3.25}

    assert one_line(0, metrics) == "round 0, pretrained, without search: reward 0.51, heldout/kl 2, diversity 3.25"
    assert one_line(2, metrics).startswith("round 2, aligned, without search:")


class Pictures(Toy):
    """The toy's x_0 as colours of 4 x 4 pictures."""

    def decode(self, x_0: Tensor) -> Tensor:
        return x_0.sigmoid()[:, :, None, None].expand(-1, -1, 4, 4)


CHUNK = EvaluationChunk(1, 0, 1, (4, 5, 6), (21, 22, 23), ("0.3", "-0.5", "0.3"), True)
JUDGES = Judges((("orange", TargetColour()),), lambda images: images.flatten(1))


def measured(chunk: EvaluationChunk, toy: Toy) -> pa.Table:
    return measure(toy, local_scorer([("bright", 1.0, Brightness())]), JUDGES, chunk)


def test_measures_are_those_of_the_samples() -> None:
    toy = Pictures(steps=3, dim=3).shifted(0.8)
    images = toy.decode(ancestral(toy, CHUNK.conditions, PipelineNoise(CHUNK.seeds))[-1])
    found = measured(CHUNK, toy)

    assert found.column("sample").to_pylist() == [4, 5, 6]
    assert found.column("seed").to_pylist() == [21, 22, 23]
    assert found.column("condition").to_pylist() == list(CHUNK.conditions)
    assert found.column("reward").to_pylist() == pytest.approx(images.flatten(1).mean(1).tolist())
    assert found.column("heldout/orange").to_pylist() == pytest.approx(TargetColour()(images, []).tolist())
    assert np.array_equal(buffer.read_tensors(found, "features"), images.flatten(1).numpy())
    for png, pixels in zip(found.column("image").to_pylist(), buffer.pixels(images), strict=True):
        assert np.array_equal(np.array(Image.open(io.BytesIO(png))), pixels)


def test_kl_is_the_sum_over_the_path() -> None:
    """The toy's policy shifts each step by the same wherever it is: its path KL is known."""
    toy = Pictures(steps=3, dim=3).shifted(0.8)
    moved = GaussianKernel(toy.shift.detach(), toy.schedule.std.float().unsqueeze(1))
    expected = float(moved.kl(GaussianKernel(torch.zeros_like(moved.mean), moved.std)).sum())

    assert expected > 0.5
    assert measured(CHUNK, toy).column("kl").to_pylist() == pytest.approx([expected] * 3, rel=1e-4)
    without = EvaluationChunk(1, 0, 1, CHUNK.samples, CHUNK.seeds, CHUNK.conditions, False)
    assert measured(without, toy).column("kl").to_pylist() == [None] * 3


def test_a_sample_is_its_seeds_whatever_its_chunk() -> None:
    toy = Pictures(steps=3, dim=3)
    whole = measured(CHUNK, toy)
    for i, (sample, seed, condition) in enumerate(zip(CHUNK.samples, CHUNK.seeds, CHUNK.conditions, strict=True)):
        alone = measured(EvaluationChunk(1, i, 1, (sample,), (seed,), (condition,), True), toy)
        assert alone.column("image")[0] == whole.column("image")[i]
    images = whole.column("image").to_pylist()
    assert all(a != b for a, b in itertools.combinations(images, 2))
