"""The job behind `digits_turbo`: a few steps of it, and what it gave, which ships."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, LCMScheduler

from dav_ray.config.model_path import ASSETS
from dav_ray.rewards.digits import DIGIT_NAMES, DigitLegibility
from jobs.assets import digits_turbo as job

MOST_BYTES = 2_000_000


@pytest.mark.thorough
def test_a_short_distillation_lowers_the_loss_and_gives_a_pipeline(tmp_path: Path) -> None:
    losses = job.make(tmp_path, seed=0, steps=24, copies=1)

    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    pipe = LatentConsistencyModelPipeline.from_pretrained(tmp_path)
    assert pipe.unet.dtype == pipe.vae.dtype == pipe.text_encoder.dtype == torch.float32
    images, _ = job.sample(pipe, 3)
    assert images.shape == (3, 3, 32, 32)
    assert pipe.scheduler.timesteps.tolist() == [999, 749, 499, 249]


def test_the_distilled_model_is_held_to_the_times_of_its_scheduler() -> None:
    scheduler = LCMScheduler.from_pretrained(ASSETS / "digits_turbo", subfolder="scheduler")
    levels = job.Levels(scheduler)
    scheduler.set_timesteps(job.SOLVER_STEPS)
    assert levels.times.flip(0).tolist() == scheduler.timesteps.tolist()
    assert levels.before.tolist() == [0, *levels.times[:-1].tolist()]


def test_a_consistency_function_is_the_state_itself_at_time_zero_and_the_guess_elsewhere() -> None:
    scheduler = LCMScheduler.from_pretrained(ASSETS / "digits_turbo", subfolder="scheduler")
    levels = job.Levels(scheduler)
    clean, eps = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 499])
    alpha, sigma = levels.at(t)
    x = levels.noised(clean, t, eps)
    said = levels.consistent(x, t, alpha * eps - sigma * clean)
    assert torch.equal(said[0], x[0])
    torch.testing.assert_close(said[1], clean[1], rtol=0, atol=1e-4)


def test_what_ships_is_small_and_its_samples_are_legible() -> None:
    folder = ASSETS / "digits_turbo"
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= MOST_BYTES
    images, labels = job.sample_saved(folder, 60)
    legible = DigitLegibility()(images, [DIGIT_NAMES[label] for label in labels])
    # 95 % of 60, less 2.9 standard deviations
    assert legible.sum() >= math.floor(60 * 0.95 - 2.9 * math.sqrt(60 * 0.95 * 0.05))
