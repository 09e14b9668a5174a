"""`FluxPipeline` on tiny random weights: the adapter says what the pipeline says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dav_ray.config.checks.preflight import model_mistakes
from dav_ray.config.families.pipelines.flux import Flux as Family
from dav_ray.config.schema import Config
from dav_ray.diffusion.noise import PipelineNoise
from tests.support.oracle import differences, gradient_is_finite, lora_round_trip, of_recipe
from tests.support.pipelines.flux import PROMPTS, STEPS, begin, drawn, model_of, tiny


@pytest.mark.parametrize("height, width", [(16, 16), (16, 24)])
@pytest.mark.parametrize("dev, guidance", [(True, 1.0), (True, 3.5), (False, 0.0)])
def test_it_says_what_the_pipeline_says(tmp_path: Path, dev: bool, guidance: float, height: int, width: int) -> None:
    pipe = tiny(tmp_path, dev=dev)
    oracle = drawn(height, width, guidance, dev=dev)(pipe)
    model = model_of(pipe, height=height, width=width, guidance=guidance)
    output, images, start = differences(model, oracle, PROMPTS, begin(height, width))
    assert start == 0
    assert output < 1e-5
    assert images < 1e-5


def test_in_half_precision_it_says_the_same(tmp_path: Path) -> None:
    pipe = tiny(tmp_path).to(torch.bfloat16)
    output, *_ = differences(model_of(pipe), drawn()(pipe), PROMPTS, begin())
    assert output == 0


def test_guidance_is_told_and_takes_one_pass(tmp_path: Path) -> None:
    pipe, told = tiny(tmp_path), list[Any]()
    pipe.transformer.register_forward_pre_hook(lambda _, args, words: told.append(words["guidance"]), with_kwargs=True)
    with torch.no_grad():
        model_of(pipe, guidance=5.0).predict(begin(), 2, PROMPTS)
    assert [guidance.tolist() for guidance in told] == [[5.0, 5.0]]


def test_a_seed_gives_the_pipelines_noise(tmp_path: Path) -> None:
    pipe, seeds = tiny(tmp_path), [3, 1]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    latents, _ = pipe.prepare_latents(2, 4, 16, 24, torch.float32, "cpu", generators)
    assert torch.equal(model_of(pipe, width=24).prior(PROMPTS, PipelineNoise(seeds).at(STEPS)), latents)


def test_its_lora_is_the_pipelines(tmp_path: Path) -> None:
    apart, moved = lora_round_trip(
        model_of, lambda: tiny(tmp_path), drawn(), Family.lora_targets, PROMPTS, begin(), tmp_path / "policy"
    )
    assert apart < 1e-5 < 1e-3 < moved


def test_rewards_have_a_gradient(tmp_path: Path) -> None:
    assert gradient_is_finite(model_of(tiny(tmp_path)), PROMPTS)


def test_a_recipe_builds_it_from_a_folder(tmp_path: Path) -> None:
    search = {"kind": "none", "steps": STEPS, "eta": 0, "guidance_scale": 3.5}
    model = of_recipe(tiny(tmp_path), tmp_path / "pipe", PROMPTS, search=search, height=16, width=32)
    *apart, _ = differences(model, drawn(16, 32)(tiny(tmp_path)), PROMPTS, begin(16, 32))
    assert max(apart) < 1e-5


def test_what_it_can_not_draw_is_one_line_each(tmp_path: Path) -> None:
    folder = tmp_path / "pipe"
    tiny(tmp_path).save_pretrained(folder)
    section = {"path": str(folder), "width": 24, "negative_prompt": "blurred"}
    sections = {"model": section, "prompts": ["a"], "reward": {"kind": "brightness"}}
    config = Config.model_validate(sections)
    assert Family().passes(config) == 1
    assert list(model_mistakes(config)) == [
        "model.width = 24: the VAE can't hold it; allowed: a multiple of 16",
        "model.negative_prompt = blurred: a FluxPipeline has no use for it; allowed: null",
    ]
    file = folder / "transformer/config.json"
    file.write_text(file.read_text().replace('"in_channels": 16', '"in_channels": 24'))
    found = list(model_mistakes(config))
    words = "the transformer takes 24 channels, the vae has 4 (times 4); allowed: a text-to-image pipeline"
    assert any(words in line for line in found)
