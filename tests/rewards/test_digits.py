"""The digit reader, its reward, and the shipped pipeline that it judges."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline

from dav_ray.rewards.digits import ASSET, DIGIT_NAMES, DigitLegibility, DigitReader
from jobs.assets.digits_data import real_digits


@pytest.fixture
def held_out() -> tuple[torch.Tensor, list[str]]:
    """Real digits [N, 3, 32, 32] in [0, 1] that no part of the asset was trained on, and their names."""
    _, test = real_digits()
    return test.images, [DIGIT_NAMES[label] for label in test.labels]


def test_the_reader_reads_real_digits(held_out: tuple[torch.Tensor, list[str]]) -> None:
    scores = DigitLegibility()(*held_out)

    assert scores.dtype == torch.float32
    assert set(scores.tolist()) <= {0.0, 1.0}
    assert scores.mean() >= 0.97


def test_a_digit_is_not_legible_as_another(held_out: tuple[torch.Tensor, list[str]]) -> None:
    images, names = held_out
    others = [DIGIT_NAMES[(DIGIT_NAMES.index(name) + 1) % 10] for name in names]

    assert DigitLegibility()(images, others).mean() <= 0.03


def test_features_are_float32_and_an_images_score_is_its_own() -> None:
    reader = DigitReader.load()
    images = torch.rand(4, 3, 32, 32)

    features = reader.features(images.half())
    assert features.shape == (4, reader.feature_dim)
    assert features.dtype == torch.float32
    assert torch.allclose(reader(images)[:1], reader(images[:1]), atol=1e-5)


def test_other_image_sizes_are_read_too(held_out: tuple[torch.Tensor, list[str]]) -> None:
    images, names = held_out
    large = torch.nn.functional.interpolate(images[:100], (64, 64), mode="bilinear")

    assert DigitLegibility()(large, names[:100]).mean() >= 0.95


def test_a_prompt_that_is_no_digit_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"'a cat' is no digit name; expected one of: zero, one") as caught:
        DigitLegibility()(torch.rand(2, 3, 32, 32), ["one", "a cat"])
    assert "\n" not in str(caught.value)


def test_samples_without_a_condition_each_are_refused() -> None:
    with pytest.raises(ValueError, match="2 samples but 1 conditions"):
        DigitLegibility()(torch.rand(2, 3, 32, 32), ["one"])


def test_the_shipped_pipeline_draws_legible_digits() -> None:
    pipe = StableDiffusionPipeline.from_pretrained(ASSET, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    names = list(DIGIT_NAMES) * 10
    images = pipe(
        names, num_inference_steps=20, guidance_scale=2.0, eta=1.0,
        generator=torch.Generator().manual_seed(1), output_type="pt",
    ).images  # fmt: skip

    assert DigitLegibility()(images, names).mean() >= 0.9


def test_the_shipped_asset_is_small() -> None:
    assert sum(file.stat().st_size for file in ASSET.rglob("*") if file.is_file()) <= 3_000_000
