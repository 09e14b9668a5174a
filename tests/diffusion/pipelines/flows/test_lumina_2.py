"""`Lumina2Pipeline` on tiny random weights: the adapter says what the pipeline says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dav_ray.config.families.pipelines.lumina_2 import Lumina2 as Family
from tests.support.oracle import differences, gradient_is_finite, lora_round_trip, of_recipe, own_side, recorded
from tests.support.pipelines.lumina_2 import PROMPTS, STEPS, begin, drawn, model_of, tiny


@pytest.mark.parametrize(
    ("height", "width", "guidance", "negative", "scheduler"),
    [
        (32, 32, 1.0, None, {}),
        (32, 48, 4.0, None, {"use_dynamic_shifting": True}),
        (48, 32, 4.0, "blurred, and of a bad quality", {}),
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
    start = begin().bfloat16()  # the pipeline leaves the type of latents that it is given as it is
    oracle = recorded(pipe, PROMPTS, start, height=32, width=32, guidance_scale=1.0, num_inference_steps=STEPS)
    output, *_ = differences(model_of(pipe, guidance=1.0), oracle, PROMPTS, start)
    assert output == 0


def test_guidance_keeps_the_length_of_rows() -> None:
    conditional, free = begin(), begin().flip(0)
    found = model_of(tiny()).guided(free, conditional)
    torch.testing.assert_close(found.norm(dim=-1), conditional.norm(dim=-1))
    mixed = free + 4 * (conditional - free)
    torch.testing.assert_close(found / found.norm(dim=-1, keepdim=True), mixed / mixed.norm(dim=-1, keepdim=True))


def test_its_lora_is_the_pipelines(tmp_path: Path) -> None:
    apart, moved = lora_round_trip(model_of, tiny, drawn(), Family.lora_targets, PROMPTS, begin(), tmp_path)
    assert apart < 1e-5 < 1e-3 < moved


def test_rewards_have_a_gradient() -> None:
    assert gradient_is_finite(model_of(tiny()), PROMPTS)


def test_a_recipe_builds_it_from_a_folder(tmp_path: Path) -> None:
    search = {"kind": "none", "steps": STEPS, "eta": 0, "guidance_scale": 4}
    model = of_recipe(tiny(), tmp_path, PROMPTS, search=search, height=32, width=48)
    *apart, _ = differences(model, drawn(32, 48)(tiny()), PROMPTS, begin(32, 48))
    assert max(apart) < 1e-5
    assert own_side(tmp_path) == 32
