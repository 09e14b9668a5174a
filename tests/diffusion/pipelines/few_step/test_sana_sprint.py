"""`SanaSprintPipeline` on tiny random weights: the adapter says what the pipeline says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dav_ray.config.families.pipelines.sana import SanaSprint as Family
from dav_ray.diffusion.pipelines.few_step.sana_sprint import SanaSprint
from tests.support.oracle import Recorded, differences, gradient_is_finite, lora_round_trip, of_recipe, recorded
from tests.support.sana import PROMPTS, begin, tiny_parts

SPREAD, SEED = 0.5, 3  # sigma_data


def tiny() -> Any:
    from diffusers import SanaSprintPipeline, SCMScheduler

    parts = tiny_parts(guidance_embeds=True, qk_norm="rms_norm_across_heads")
    pipe = SanaSprintPipeline(**parts, scheduler=SCMScheduler(sigma_data=SPREAD))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(steps: int, guidance: float, height: int, width: int) -> Callable[[Any], Recorded]:
    """What the pipeline draws, its outputs read as velocities. It says F = -sin(a) x_0 + cos(a) eps of states and
    outputs times sigma_data."""

    def draw(pipe: Any) -> Recorded:
        words: dict[str, Any] = {"height": height, "width": width, "guidance_scale": guidance}
        middle = {"num_inference_steps": steps, "intermediate_timesteps": 1.3 if steps == 2 else None}
        generator = torch.Generator().manual_seed(SEED)
        words |= {"use_resolution_binning": False, "generator": generator, **middle}
        found = recorded(pipe, PROMPTS, begin(height, width), **words)
        states = [state / SPREAD for state in found.states]
        angles = pipe.scheduler.timesteps[:-1]
        outputs = [velocity(x, f / SPREAD, a) for x, f, a in zip(states, found.outputs, angles, strict=True)]
        return Recorded(states, outputs, found.images)

    return draw


def velocity(x: Tensor, f: Tensor, angle: Tensor) -> Tensor:
    """eps - x_0, where x = cos(a) x_0 + sin(a) eps and f = cos(a) eps - sin(a) x_0."""
    return (angle.sin() * x + angle.cos() * f) - (angle.cos() * x - angle.sin() * f)


@pytest.mark.parametrize(("steps", "guidance", "height", "width"), [(2, 4.5, 32, 32), (4, 1.0, 32, 64)])
def test_it_says_what_the_pipeline_says(steps: int, guidance: float, height: int, width: int) -> None:
    """The noise included: it is drawn anew at each step but the last."""
    pipe = tiny()
    oracle = drawn(steps, guidance, height, width)(pipe)
    model = SanaSprint(pipe, steps=steps, guidance_scale=guidance, height=height, width=width)
    noise = torch.Generator().manual_seed(SEED)
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

    noise = torch.Generator().manual_seed(SEED)
    draw = drawn(2, 4.5, 32, 32)
    apart, moved = lora_round_trip(model, tiny, draw, Family.lora_targets, PROMPTS, begin(32, 32), tmp_path, noise)
    assert apart < 1e-5 < 1e-3 < moved


def test_rewards_have_a_gradient() -> None:
    assert gradient_is_finite(SanaSprint(tiny(), steps=2, guidance_scale=4.5, height=32, width=32), PROMPTS)


def test_a_recipe_builds_it_from_a_folder(tmp_path: Path) -> None:
    model = of_recipe(tiny(), tmp_path, PROMPTS, search={"steps": 2, "guidance_scale": 4.5}, height=32, width=64)
    noise = torch.Generator().manual_seed(SEED)
    *apart, _ = differences(model, drawn(2, 4.5, 32, 64)(tiny()), PROMPTS, begin(32, 64), noise=noise)
    assert max(apart) < 1e-5


def test_a_negative_prompt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="negative_prompt = blurred: a SanaSprintPipeline has no use for it"):
        of_recipe(tiny(), tmp_path, PROMPTS, search={"steps": 2}, negative_prompt="blurred")
