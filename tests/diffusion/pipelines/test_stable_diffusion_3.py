"""`StableDiffusion3Pipeline` on tiny random weights: the adapter says what the pipeline says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dav_ray.config.families.pipelines.stable_diffusion_3 import StableDiffusion3 as Family
from tests.support.oracle import differences, gradient_is_finite, lora_round_trip, of_recipe, recorded
from tests.support.pipelines.stable_diffusion_3 import PROMPTS, SIDE, STEPS, begin, drawn, model_of, tiny


@pytest.mark.parametrize("guidance", [1.0, 4.5])
@pytest.mark.parametrize("options", [{}, {"with_t5": False}, {"use_dynamic_shifting": True}])
def test_it_says_what_the_pipeline_says(tmp_path: Path, guidance: float, options: dict[str, Any]) -> None:
    pipe = tiny(tmp_path, **options)
    oracle = drawn(guidance)(pipe)
    model = model_of(pipe, guidance=guidance)
    output, images, start = differences(model, oracle, PROMPTS, begin())
    assert start == 0
    assert output < 1e-5
    assert images < 1e-5


def test_its_lora_is_the_pipelines_and_rewards_have_a_gradient(tmp_path: Path) -> None:
    apart, moved = lora_round_trip(
        model_of,
        lambda: tiny(tmp_path / "tokenizers"),
        drawn(),
        Family.lora_targets,
        PROMPTS,
        begin(),
        tmp_path / "policy",
    )
    assert apart < 1e-5 < 1e-3 < moved
    assert gradient_is_finite(model_of(tiny(tmp_path / "tokenizers")), PROMPTS)


@pytest.mark.parametrize("with_t5", [True, False])
def test_a_recipe_builds_it_from_a_folder(tmp_path: Path, with_t5: bool) -> None:
    search = {"kind": "none", "steps": STEPS, "eta": 0, "guidance_scale": 3.0}
    size = {"height": SIDE, "width": SIDE, "max_sequence_length": 4}
    pipe = tiny(tmp_path, with_t5=with_t5)
    start = begin()
    oracle = recorded(pipe, PROMPTS, start, num_inference_steps=STEPS, guidance_scale=3.0, **size)
    model = of_recipe(pipe, tmp_path / "pipe", PROMPTS, search=search, **size)
    *apart, _ = differences(model, oracle, PROMPTS, start)
    assert max(apart) < 1e-5
