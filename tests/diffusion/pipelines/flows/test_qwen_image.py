"""`QwenImagePipeline` on tiny random weights: the adapter says what the pipeline says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dav_ray.config.families.pipelines.qwen_image import QwenImage as Family
from dav_ray.config.schema import Config
from dav_ray.diffusion.noise import PipelineNoise
from tests.support.oracle import differences, gradient_is_finite, lora_round_trip, of_recipe, recorded
from tests.support.pipelines.qwen_image import PROMPTS, STEPS, begin, drawn, model_of, tiny


@pytest.mark.parametrize(
    ("height", "width", "guidance", "negative", "scheduler"),
    [
        (16, 16, 1.0, None, {}),
        (16, 16, 4.0, None, {}),  # which the pipeline does not guide
        (16, 32, 4.0, " ", {}),
        (32, 16, 2.5, "blurred, and badly drawn", {"use_dynamic_shifting": False, "shift": 3.0}),
    ],
)
def test_it_says_what_the_pipeline_says(
    height: int, width: int, guidance: float, negative: str | None, scheduler: dict[str, Any]
) -> None:
    pipe = tiny(**scheduler)
    oracle = drawn(height, width, guidance, negative)(pipe)
    model = model_of(pipe, height=height, width=width, guidance=guidance, negative=negative)
    output, images, start = differences(model, oracle, PROMPTS, begin(height, width))
    assert start == 0
    assert output < 1e-5
    assert images < 1e-5


def test_long_prompts_are_cut_as_the_pipeline_does() -> None:
    pipe = tiny()
    model, long = model_of(pipe), "ab " * 300
    words = {"height": 16, "width": 16, "num_inference_steps": STEPS, "true_cfg_scale": 1.0}
    oracle = recorded(pipe, [long] * 2, begin(), **words)
    output, *_ = differences(model_of(pipe, guidance=1.0), oracle, [long] * 2, begin())
    assert output < 1e-5
    assert len(model.embed(long)["text"]) == 512


def test_a_seed_gives_the_pipelines_noise() -> None:
    pipe, seeds = tiny(), [3, 1]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    latents = pipe.prepare_latents(2, 4, 16, 32, torch.float32, "cpu", generators)
    assert torch.equal(model_of(pipe, width=32).prior(PROMPTS, PipelineNoise(seeds).at(STEPS)), latents)


def test_its_lora_is_the_pipelines(tmp_path: Path) -> None:
    apart, moved = lora_round_trip(model_of, tiny, drawn(), Family.lora_targets, PROMPTS, begin(), tmp_path)
    assert apart < 1e-5 < 1e-4 < moved


def test_rewards_have_a_gradient() -> None:
    assert gradient_is_finite(model_of(tiny()), PROMPTS)


def test_a_recipe_builds_it_from_a_folder(tmp_path: Path) -> None:
    search = {"kind": "none", "steps": STEPS, "eta": 0, "guidance_scale": 4.0}
    model = of_recipe(tiny(), tmp_path, PROMPTS, search=search, height=16, width=32, negative_prompt=" ")
    *apart, _ = differences(model, drawn(16, 32)(tiny()), PROMPTS, begin(16, 32))
    assert max(apart) < 1e-5


@pytest.mark.parametrize(("negative", "passes"), [(None, 1), (" ", 2)])
def test_guidance_takes_a_negative_prompt(negative: str | None, passes: int) -> None:
    sections = {"model": {"path": "x", "negative_prompt": negative}, "prompts": ["a"], "reward": {"kind": "brightness"}}
    assert Family().passes(Config.model_validate(sections)) == passes
