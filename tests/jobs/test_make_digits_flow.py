"""The job behind `digits_flow`: a few steps of it, and what it gave, which ships."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from dav_ray.config.model_path import ASSETS
from dav_ray.rewards.digits import DIGIT_NAMES, DigitLegibility
from jobs.assets import digits_flow as job

MOST_BYTES = 2_000_000


@pytest.mark.thorough
def test_a_short_training_lowers_the_loss_and_gives_a_pipeline(tmp_path: Path) -> None:
    losses = job.make(tmp_path, seed=0, steps=24, copies=1)

    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    pipe = StableDiffusion3Pipeline.from_pretrained(tmp_path, text_encoder_3=None, tokenizer_3=None)
    assert pipe.transformer.dtype == pipe.vae.dtype == pipe.text_encoder.dtype == torch.float32
    assert sum(weight.numel() for weight in pipe.transformer.parameters()) < 1_000_000
    images, labels = job.sample(pipe, 3, steps=2, longest=1)
    assert images.shape == (3, 3, 32, 32)
    assert images.min() >= 0 and images.max() <= 1
    assert labels.tolist() == [0, 1, 2]


def test_the_tokenizer_holds_the_names_and_tells_them_apart() -> None:
    tokenizer = job.build_tokenizer(job.TOKENS)
    rows = [tokenizer(name).input_ids for name in [*DIGIT_NAMES, ""]]
    assert max(len(row) for row in rows) <= job.TOKENS
    assert len({tuple(row) for row in rows}) == len(rows)


def test_what_ships_is_small_and_its_samples_are_legible() -> None:
    folder = ASSETS / "digits_flow"
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= MOST_BYTES
    images, labels = job.sample(job.load(folder), 60, steps=10, longest=1)
    legible = DigitLegibility()(images, [DIGIT_NAMES[label] for label in labels])
    # 95 % of 60, less 2.9 standard deviations
    assert legible.sum() >= math.floor(60 * 0.95 - 2.9 * math.sqrt(60 * 0.95 * 0.05))


def test_nor_do_the_tokens_in_place_of_t5_matter() -> None:
    """The 256 that a pipeline takes if it is told nothing, and the single one of the recipe."""
    pipe = job.load(ASSETS / "digits_flow")
    (many, _), (one, labels) = (job.sample(pipe, 4, steps=4, longest=longest) for longest in (256, 1))
    names = [DIGIT_NAMES[label] for label in labels]
    assert (many - one).abs().mean() < 0.1
    assert DigitLegibility()(many, names).sum() >= 3
