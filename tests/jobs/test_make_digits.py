"""The job behind the shipped digits: a few steps of it, in a temporary folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from dav_ray.rewards.digits import READER_FILE, DigitReader
from jobs.assets import digits as job


@pytest.mark.thorough
def test_short_training_lowers_both_losses_and_gives_a_pipeline(tmp_path: Path) -> None:
    losses = job.make(tmp_path, seed=0, reader_steps=5, vae_steps=12, unet_steps=16, copies=1)

    for part in ("vae", "unet"):
        assert sum(losses[part][-3:]) < 0.9 * sum(losses[part][:3]), part
    assert DigitReader.load(tmp_path / READER_FILE)(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path)
    assert pipe.text_encoder.dtype == pipe.unet.dtype == pipe.vae.dtype == torch.float32
    images, labels = job.sample(pipe, 3, steps=2)
    assert images.shape == (3, 3, 32, 32)
    assert images.min() >= 0 and images.max() <= 1
    assert labels.tolist() == [0, 1, 2]


def test_the_tokenizer_tells_the_ten_prompts_apart_within_its_length() -> None:
    tokens = job.build_tokenizer()([*job.DIGIT_NAMES, ""], padding="max_length").input_ids

    assert {len(row) for row in tokens} == {job.TOKENS}
    assert len({tuple(row) for row in tokens}) == len(job.DIGIT_NAMES) + 1


def test_the_grid_shows_a_row_of_samples_for_every_digit(tmp_path: Path) -> None:
    labels = torch.arange(30) % 10
    job.write_grid(torch.rand(30, 3, 32, 32), labels, tmp_path / "grid.png", columns=3)

    with job.Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == (3 * 32 * 2, 10 * 32 * 2)
