"""`Flux2KleinPipeline` on tiny random weights: the adapter says what the pipeline says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dav_ray.config.checks.preflight import model_mistakes
from dav_ray.config.families.pipelines.flux_2_klein import Flux2Klein as Family
from dav_ray.config.schema import Config
from dav_ray.diffusion.noise import PipelineNoise
from tests.support.oracle import differences, gradient_is_finite, lora_round_trip, of_recipe
from tests.support.pipelines.flux_2_klein import PROMPTS, STEPS, begin, drawn, model_of, tiny


@pytest.mark.parametrize(
    ("height", "width", "guidance", "distilled"),
    [(16, 24, 4.0, False), (16, 16, 4.0, True)],
)
def test_it_says_what_the_pipeline_says(height: int, width: int, guidance: float, distilled: bool) -> None:
    pipe = tiny(distilled=distilled)
    oracle = drawn(height, width, guidance)(pipe)
    model = model_of(pipe, height=height, width=width, guidance=guidance)
    output, images, start = differences(model, oracle, PROMPTS, begin(height, width))
    assert start == 0
    assert output < 1e-5
    assert images < 1e-5


def test_in_half_precision_it_says_the_same() -> None:
    pipe = tiny().to(torch.bfloat16)
    output, *_ = differences(model_of(pipe), drawn()(pipe), PROMPTS, begin())
    assert output == 0


@pytest.mark.parametrize(("distilled", "guidance", "passes"), [(True, 4.0, 1), (False, 4.0, 2), (False, 1.0, 1)])
def test_a_distilled_one_takes_one_pass(tmp_path: Path, distilled: bool, guidance: float, passes: int) -> None:
    pipe, rows = tiny(distilled=distilled), list[int]()
    pipe.transformer.register_forward_pre_hook(
        lambda _, args, words: rows.append(len(words["hidden_states"])), with_kwargs=True
    )
    with torch.no_grad():
        model_of(pipe, guidance=guidance).predict(begin(), 2, PROMPTS)
    assert rows == [passes * len(PROMPTS)]
    pipe.save_config(tmp_path)
    sections = {"model": {"path": str(tmp_path)}, "prompts": ["a"], "reward": {"kind": "brightness"}}
    assert Family().passes(Config.model_validate({**sections, "search": {"guidance_scale": guidance}})) == passes


def test_a_seed_gives_the_pipelines_noise() -> None:
    pipe, seeds = tiny(), [3, 1]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    latents, _ = pipe.prepare_latents(2, 4, 16, 24, torch.float32, "cpu", generators)
    assert torch.equal(model_of(pipe, width=24).prior(PROMPTS, PipelineNoise(seeds).at(STEPS)), latents)


def test_its_lora_is_the_pipelines(tmp_path: Path) -> None:
    apart, moved = lora_round_trip(model_of, tiny, drawn(), Family.lora_targets, PROMPTS, begin(), tmp_path)
    assert apart < 1e-5 < 1e-3 < moved


def test_rewards_have_a_gradient() -> None:
    assert gradient_is_finite(model_of(tiny()), PROMPTS)


def test_a_recipe_builds_it_from_a_folder(tmp_path: Path) -> None:
    search = {"kind": "none", "steps": STEPS, "eta": 0, "guidance_scale": 1}
    model = of_recipe(tiny(), tmp_path, PROMPTS, search=search, height=16, width=32)
    *apart, _ = differences(model, drawn(16, 32)(tiny()), PROMPTS, begin(16, 32))
    assert max(apart) < 1e-5


def test_a_negative_prompt_is_refused(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    section = {"path": str(tmp_path), "negative_prompt": "blurred"}
    config = Config.model_validate({"model": section, "prompts": ["a"], "reward": {"kind": "brightness"}})
    (line,) = model_mistakes(config)
    assert line == "model.negative_prompt = blurred: a Flux2KleinPipeline has no use for it; allowed: null"
