"""`ZImagePipeline` on tiny random weights: the adapter says what the pipeline says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dav_ray.config.families.pipelines.z_image import ZImage as Family
from dav_ray.config.schema import Config
from tests.support.oracle import differences, gradient_is_finite, lora_round_trip, of_recipe
from tests.support.pipelines.z_image import PROMPTS, STEPS, begin, drawn, model_of, tiny


@pytest.mark.parametrize(
    ("height", "width", "guidance", "negative", "scheduler"),
    [
        (16, 16, 0.0, None, {}),
        (16, 16, 0.5, None, {"use_dynamic_shifting": True}),
        (16, 24, 1.0, None, {}),
        (24, 16, 4.0, "blurred, and of a bad quality", {}),
    ],
)
def test_it_says_what_the_pipeline_says(
    height: int, width: int, guidance: float, negative: str | None, scheduler: dict[str, Any]
) -> None:
    pipe = tiny(**scheduler)
    oracle = drawn(height, width, guidance, negative)(pipe)
    model = model_of(pipe, height=height, width=width, guidance=guidance, negative_prompt=negative)
    output, images, start = differences(model, oracle, PROMPTS, begin(height, width))
    assert start == 0
    assert output < 1e-5
    assert images < 1e-5


def test_in_half_precision_it_says_the_same() -> None:
    pipe = tiny().to(torch.bfloat16)
    oracle = drawn()(pipe)
    output, *_ = differences(model_of(pipe), oracle, PROMPTS, begin())
    # the passes lie in another order in the batch
    assert output <= 0.01 * max(float(said.abs().max()) for said in oracle.outputs)


@pytest.mark.parametrize("guidance, passes", [(0.0, 1), (0.5, 2), (1.0, 2)])
def test_guidance_takes_a_second_pass_where_its_scale_is_not_zero(guidance: float, passes: int) -> None:
    pipe, rows = tiny(), list[int]()
    pipe.transformer.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    with torch.no_grad():
        model_of(pipe, guidance=guidance).predict(begin(), 2, PROMPTS)
    assert rows == [passes * len(PROMPTS)]
    sections = {"model": {"path": "x/y"}, "prompts": ["a"], "reward": {"kind": "brightness"}}
    assert Family().passes(Config.model_validate({**sections, "search": {"guidance_scale": guidance}})) == passes


def test_its_lora_is_the_pipelines(tmp_path: Path) -> None:
    apart, moved = lora_round_trip(model_of, tiny, drawn(), Family.lora_targets, PROMPTS, begin(), tmp_path)
    assert apart < 1e-5 < 1e-3 < moved


def test_rewards_have_a_gradient() -> None:
    assert gradient_is_finite(model_of(tiny()), PROMPTS)


def test_a_recipe_builds_it_from_a_folder(tmp_path: Path) -> None:
    search = {"kind": "none", "steps": STEPS, "eta": 0, "guidance_scale": 4}
    model = of_recipe(tiny(), tmp_path, PROMPTS, search=search, height=16, width=32)
    *apart, _ = differences(model, drawn(16, 32)(tiny()), PROMPTS, begin(16, 32))
    assert max(apart) < 1e-5
