"""The measures of held-out samples, by hand."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor

from dav_ray.config.schema import Config
from dav_ray.config.sections.evaluation import Evaluate
from dav_ray.diffusion.gaussian import GaussianKernel
from dav_ray.diffusion.masked.alphabet import Alphabet
from dav_ray.diffusion.noise import Draws, PipelineNoise
from dav_ray.diffusion.sampling import ancestral
from dav_ray.errors import Stopped
from dav_ray.evaluation.diversity import pairwise_distance
from dav_ray.evaluation.images import Images
from dav_ray.evaluation.measure import Judges, evaluation_chunks, measure, one_line, rise, summarise
from dav_ray.evaluation.sequences import Sequences
from dav_ray.rewards.base import local_scorer
from dav_ray.rewards.colour import Brightness, TargetColour
from dav_ray.run_dir import shards
from dav_ray.run_dir.arrays import pixels
from dav_ray.testing.gaussian import LinearGaussian
from dav_ray.types import EvaluationChunk

IMAGES = Images("auto")
DNA = Alphabet.of("dna")


def table(kl: list[float | None]) -> pa.Table:
    features = np.array([[0, 0], [3, 4], [0, 0], [6, 8]], np.float32)
    columns: dict[str, Any] = {
        "condition": pa.array(["a", "a", "b", "c"]),
        "reward": pa.array([1.0, 2.0, 3.0, 6.0]),
        "heldout/colour": pa.array([0.0, -1.0, -1.0, 0.0]),
        "kl": pa.array(kl, pa.float64()),
    }
    fields = [pa.field(name, column.type) for name, column in columns.items()]
    schema = pa.schema([*fields, shards.tensor_field("features", features)])
    return pa.Table.from_arrays([*columns.values(), shards.tensor_column(features)], schema=schema)


def test_summary() -> None:
    """Diversity within a prompt is over prompts that have a pair: here one, at distance 5."""
    assert summarise(table([2.0, None, 4.0, None]), IMAGES) == pytest.approx(
        {
            "evaluate/reward_mean": 3.0,
            "evaluate/reward_std": np.sqrt((4 + 1 + 0 + 9) / 4),
            "median/reward": 2.5,
            "median/colour": -0.5,
            "heldout/colour": -0.5,
            "heldout/kl": 3.0,
            "diversity/features": np.mean([5, 0, 10, 5, 5, 10]),
            "diversity/within_prompt": 5.0,
        }
    )
    assert "heldout/kl" not in summarise(table([None] * 4), IMAGES)


def test_the_line_for_people() -> None:
    metrics = {"evaluate/reward_mean": 0.51, "evaluate/reward_std": 0.2, "heldout/kl": 2.0, "diversity/features": 3.25}

    assert one_line(0, metrics) == "round 0, pretrained, without search: reward 0.51, heldout/kl 2, diversity 3.25"
    assert one_line(2, metrics).startswith("round 2, aligned, without search:")


def sequences(texts: Sequence[str], reward: Sequence[float], **columns: Sequence[float]) -> pa.Table:
    kl = pa.array([None] * len(texts), pa.float64())
    named = {name.replace("__", "/"): pa.array(values, pa.float64()) for name, values in columns.items()}
    return pa.table({"reward": pa.array(reward, pa.float64()), "kl": kl, "sequence": list(texts), **named})


def test_summary_of_sequences(tmp_path: Path) -> None:
    """AAAA-AAAT 1 edit, AAAA-TTTT 4, AAAT-TTTT 3, and the second AAAA 0, 1, 4. The reference: the samples, twice."""
    texts = ["AAAA", "AAAT", "TTTT", "AAAA"]
    reference = tmp_path / "r.fa"
    reference.write_text("".join(f">{i}\n{text}\n" for i, text in enumerate([*texts, *texts])))
    found = sequences(texts, [1.0, 2.0, 3.0, 6.0], elbo=[-5.0, -6.0, -7.0, -14.0], heldout__gc=[0.0, 1.0, 4.0, 7.0])

    assert summarise(found, Sequences(DNA, Evaluate(reference=str(reference), kmer=2))) == pytest.approx(
        {
            "evaluate/reward_mean": 3.0,
            "evaluate/reward_std": np.sqrt((4 + 1 + 0 + 9) / 4),
            "median/reward": 2.5,
            "heldout/gc": 3.0,
            "median/gc": 2.5,
            "heldout/elbo": -8.0,
            "median/elbo": -6.5,
            "heldout/kmer_correlation": 1.0,
            "diversity/edit_distance": (1 + 4 + 3 + 0 + 1 + 4) / 6,
            "diversity/unique": 0.75,
        }
    )
    bare = summarise(sequences(texts, [1.0] * 4), Sequences(DNA, Evaluate()))
    assert not [name for name in bare if name.startswith("heldout/")]


def test_the_reference_is_read_once(tmp_path: Path) -> None:
    reference = tmp_path / "r.csv"
    reference.write_text("sequence\nAACA\n")
    kind, found = Sequences(DNA, Evaluate(reference=str(reference), kmer=1)), sequences(["AAAC", "ACTT"], [1.0, 2.0])
    first = summarise(found, kind)["heldout/kmer_correlation"]
    reference.unlink()

    assert first == pytest.approx(np.corrcoef([4, 2, 2], [3, 1, 0])[0, 1])
    assert summarise(found, kind)["heldout/kmer_correlation"] == first


def test_infeasible_samples_are_counted_and_left_out_of_means() -> None:
    kind = Sequences(DNA, Evaluate())
    infinite = -math.inf
    found = summarise(
        sequences(["A", "C", "G", "T"], [1.0, infinite, 4.0, infinite], heldout__x=[infinite, 2.0, 6.0, 7.0]), kind
    )
    assert (found["evaluate/reward_mean"], found["evaluate/reward_std"], found["median/reward"]) == (2.5, 1.5, 2.5)
    assert (found["evaluate/feasible"], found["heldout/x"], found["median/x"]) == (0.5, 5.0, 6.0)

    none = summarise(sequences(["A", "C"], [infinite] * 2), kind)
    assert none == {"evaluate/feasible": 0.0, "diversity/edit_distance": 1.0, "diversity/unique": 1.0}
    assert all(np.isfinite([*found.values(), *none.values()]))


def test_the_line_for_people_on_sequences() -> None:
    metrics = {
        "evaluate/reward_mean": 0.5,
        "evaluate/feasible": 0.9,
        "median/reward": 0.4,
        "heldout/elbo": -250.0,
        "diversity/edit_distance": 98.5,
        "diversity/unique": 1.0,
    }
    assert one_line(3, metrics) == (
        "round 3, aligned, without search: reward 0.5, feasible 0.9, heldout/elbo -250, edit distance 98.5, unique 1"
    )


class Pictures(LinearGaussian):
    """The toy's x_0 as colours of 4 x 4 pictures."""

    def decode(self, x_0: Tensor, conditions: Sequence[str], t: int = 0) -> Tensor:
        return x_0.sigmoid()[:, :, None, None].expand(-1, -1, 4, 4)


CHUNK = EvaluationChunk(1, 0, 1, (4, 5, 6), (21, 22, 23), ("0.3", "-0.5", "0.3"), True)
JUDGES = Judges((("orange", TargetColour()),), IMAGES, IMAGES.features())


def measured(chunk: EvaluationChunk, toy: LinearGaussian) -> pa.Table:
    return measure(toy, local_scorer([("bright", 1.0, Brightness())]), JUDGES, chunk)


def test_measures_are_those_of_the_samples() -> None:
    toy = Pictures(steps=3, dim=3).shifted(0.8)
    images = toy.decode(ancestral(toy, CHUNK.conditions, PipelineNoise(CHUNK.seeds))[-1], CHUNK.conditions)
    found = measured(CHUNK, toy)

    assert found.column("sample").to_pylist() == [4, 5, 6]
    assert found.column("seed").to_pylist() == [21, 22, 23]
    assert found.column("condition").to_pylist() == list(CHUNK.conditions)
    assert found.column("reward").to_pylist() == pytest.approx(images.flatten(1).mean(1).tolist())
    assert found.column("heldout/orange").to_pylist() == pytest.approx(TargetColour()(images, []).tolist())
    assert np.array_equal(shards.read_tensors(found, "features"), images.flatten(1).numpy())
    for png, shown in zip(found.column("image").to_pylist(), pixels(images), strict=True):
        assert np.array_equal(np.array(Image.open(io.BytesIO(png))), shown)


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


@pytest.mark.parametrize(("at", "evaluated", "asked"), [(0, 1, []), (3, 4, []), (8, 8, []), (9, 8, ["reward"])])
def test_an_evaluation_that_nobody_wants_any_more_ends_within_a_step(at: int, evaluated: int, asked: list[str]) -> None:
    """Of 8 steps; stop() says so when it is asked for the first time after so many times."""
    toy, said, seen = Pictures(steps=8, dim=3), iter([*[False] * at, True]), list[str]()

    def bright(samples: Tensor, conditions: Sequence[str]) -> Tensor:
        seen.append("reward")
        return Brightness()(samples, conditions)

    with pytest.raises(Stopped):
        measure(toy, local_scorer([("bright", 1.0, bright)]), JUDGES, replace(CHUNK, kl=False), lambda: next(said))
    assert toy.cost.network == 3 * evaluated and seen == asked


class Words(LinearGaussian):
    """The toy's x_0 as words: the sign of each coordinate, A or T. Its ELBO is a draw of the seed's own stream."""

    def decode(self, x_0: Tensor, conditions: Sequence[str], t: int = 0) -> Tensor:
        return 3 * (x_0 > 0).long()

    def elbo(self, tokens: Tensor, conditions: Sequence[str], rng: Draws, draws: int) -> Tensor:
        return tokens.sum(1).double() + rng.uniform((draws,)).mean(1)


class CountT:
    """Held-out reward that insists on integers."""

    differentiable = False

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        assert samples.dtype == torch.int64
        return (samples == 3).sum(1).double()


def words(chunk: EvaluationChunk, draws: int = 4) -> pa.Table:
    kind = Sequences(DNA, Evaluate(elbo_draws=draws))
    judges = Judges((("t", CountT()),), kind, lambda tokens: tokens[:, :2])
    return measure(Words(steps=3, dim=5), local_scorer([("one", 1.0, lambda x, _: x.float().mean(1))]), judges, chunk)


def test_measures_of_sequences() -> None:
    found = words(CHUNK)
    states = ancestral(Words(steps=3, dim=5), CHUNK.conditions, PipelineNoise(CHUNK.seeds))[-1]
    tokens = 3 * (states > 0).long()

    texts = ["".join("ACGT"[token] for token in row) for row in tokens.tolist()]
    assert found.column("sequence").to_pylist() == texts and len(set(texts)) > 1
    assert found.column("heldout/t").to_pylist() == [text.count("T") for text in texts]
    assert np.array_equal(shards.read_tensors(found, "features"), tokens[:, :2].numpy())
    assert {"image"}.isdisjoint(found.column_names)
    assert "elbo" not in words(CHUNK, draws=0).column_names
    assert summarise(found, Sequences(DNA, Evaluate()))["diversity/features"] > 0


def test_the_elbo_of_a_sample_is_its_seeds_whatever_its_chunk() -> None:
    whole = words(CHUNK).column("elbo").to_pylist()
    alone = [
        words(EvaluationChunk(1, i, 1, (sample,), (seed,), (condition,), False)).column("elbo").to_pylist()[0]
        for i, (sample, seed, condition) in enumerate(zip(CHUNK.samples, CHUNK.seeds, CHUNK.conditions, strict=True))
    ]
    assert alone == whole and len({value % 1 for value in whole}) == 3


def test_the_rise_is_in_standard_deviations_of_the_first_samples() -> None:
    first = {"evaluate/reward_mean": 1.0, "evaluate/reward_std": 0.5}
    assert rise({"evaluate/reward_mean": 2.5, "evaluate/reward_std": 9.0}, first) == {"evaluate/rise_sd": 3.0}
    assert rise(first, first) == {"evaluate/rise_sd": 0.0}
    for row, before in (({}, first), (first, {}), (first, {**first, "evaluate/reward_std": 0.0})):
        assert rise(row, before) == {}


def test_the_kl_is_measured_on_the_first_samples_or_not_at_all() -> None:
    config = Config.model_validate(
        {"model": {"path": "org/name"}, "prompts": ["a"], "reward": {"kind": "brightness"}}
        | {"evaluate": {"samples": 5, "batch": 4, "kl_samples": 3}}
    )

    def split(**options: Any) -> list[tuple[tuple[int, ...], bool]]:
        return [(chunk.samples, chunk.kl) for chunk in evaluation_chunks(config, 1, 1, ["a"], **options)]

    assert split() == [((0, 1, 2), True), ((3, 4), False)] == split(num=5)
    assert split(num=2) == [((0, 1), True)]
    assert split(num=6, kl=False) == [((0, 1, 2, 3), False), ((4, 5), False)]


def test_features_of_large_images_are_small_and_of_small_ones_their_pixels() -> None:
    small = torch.rand(3, 3, 64, 32)
    auto, raw = Images("auto").features(), Images("pixels").features()
    assert torch.equal(auto(small), raw(small)) and auto(small).shape == (3, 3 * 64 * 32)
    large = torch.rand(2, 3, 64, 64).repeat_interleave(8, 2).repeat_interleave(8, 3)  # blocks of one colour, 512 pixels
    assert auto(large).shape == (2, 3 * 64 * 64) and raw(large).shape == (2, 3 * 512 * 512)
    distance = [pairwise_distance(features(large).numpy()) for features in (auto, raw)]
    assert distance[0] == pytest.approx(distance[1], rel=1e-5)
    assert auto(torch.rand(1, 3, 65, 300)).shape == (1, 3 * 64 * 64)
