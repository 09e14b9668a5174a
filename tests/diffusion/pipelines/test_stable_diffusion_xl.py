"""`StableDiffusionXLPipeline` on tiny random weights: the adapter says what the pipeline says."""

from __future__ import annotations

from pathlib import Path

import pytest

from dav_ray.config.families.pipelines.stable_diffusion_xl import StableDiffusionXL as Family
from tests.support.oracle import differences, gradient_is_finite, lora_round_trip
from tests.support.pipelines.stable_diffusion_xl import PROMPTS, begin, drawn, model_of, tiny


@pytest.mark.parametrize("guidance, negative", [(1.0, None), (5.0, None), (5.0, "blurred")])
@pytest.mark.parametrize("zeros", [True, False])
def test_it_says_what_the_pipeline_says(tmp_path: Path, guidance: float, negative: str | None, zeros: bool) -> None:
    pipe = tiny(tmp_path, force_zeros_for_empty_prompt=zeros)
    oracle = drawn(guidance, negative)(pipe)
    model = model_of(pipe, guidance=guidance, negative=negative)
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
