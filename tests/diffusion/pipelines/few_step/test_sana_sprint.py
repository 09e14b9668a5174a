"""`SanaSprintPipeline` on tiny random weights: the adapter says what the pipeline says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dav_ray.config.families.pipelines.sana import SanaSprint as Family
from dav_ray.diffusion.pipelines.few_step.sana_sprint import SanaSprint
from tests.support.oracle import differences, gradient_is_finite, lora_round_trip, of_recipe
from tests.support.pipelines.sana_parts import PROMPTS, begin
from tests.support.pipelines.sana_sprint import drawn, seeded, tiny


@pytest.mark.parametrize(("steps", "guidance", "height", "width"), [(2, 4.5, 32, 32), (4, 1.0, 32, 64)])
def test_it_says_what_the_pipeline_says(steps: int, guidance: float, height: int, width: int) -> None:
    """The noise included: it is drawn anew at each step but the last."""
    pipe = tiny()
    oracle = drawn(steps, guidance, height, width)(pipe)
    model = SanaSprint(pipe, steps=steps, guidance_scale=guidance, height=height, width=width)
    noise = seeded()
    output, images, start = differences(model, oracle, PROMPTS, begin(height, width), noise=noise)
    assert start == 0
    assert output < 1e-5
    assert images < 1e-5
    assert [model.deterministic(t) for t in range(1, steps + 1)] == [True] + [False] * (steps - 1)


def test_it_is_told_the_guidance() -> None:
    one, other = (drawn(2, guidance, 32, 32)(tiny()).images for guidance in (1.0, 4.5))
    assert (one - other).abs().max() > 1e-4


def test_its_lora_is_the_pipelines(tmp_path: Path) -> None:
    def model(pipe: Any) -> SanaSprint:
        return SanaSprint(pipe, steps=2, guidance_scale=4.5, height=32, width=32)

    noise = seeded()
    draw = drawn(2, 4.5, 32, 32)
    apart, moved = lora_round_trip(model, tiny, draw, Family.lora_targets, PROMPTS, begin(32, 32), tmp_path, noise)
    assert apart < 1e-5 < 1e-3 < moved


def test_rewards_have_a_gradient() -> None:
    assert gradient_is_finite(SanaSprint(tiny(), steps=2, guidance_scale=4.5, height=32, width=32), PROMPTS)


def test_a_recipe_builds_it_from_a_folder(tmp_path: Path) -> None:
    model = of_recipe(tiny(), tmp_path, PROMPTS, search={"steps": 2, "guidance_scale": 4.5}, height=32, width=64)
    noise = seeded()
    *apart, _ = differences(model, drawn(2, 4.5, 32, 64)(tiny()), PROMPTS, begin(32, 64), noise=noise)
    assert max(apart) < 1e-5


def test_a_negative_prompt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="negative_prompt = blurred: a SanaSprintPipeline has no use for it"):
        of_recipe(tiny(), tmp_path, PROMPTS, search={"steps": 2}, negative_prompt="blurred")
