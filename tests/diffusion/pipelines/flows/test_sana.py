"""`SanaPipeline` on tiny random weights: the adapter says what the pipeline says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dav_ray.config.families.pipelines.sana import Sana as Family
from dav_ray.diffusion.pipelines.flows.sana import Sana
from dav_ray.diffusion.pipelines.schedulers import mistakes
from tests.support.oracle import differences, gradient_is_finite, lora_round_trip, of_recipe, own_side
from tests.support.pipelines.sana import SOLVER, STEPS, drawn, tiny
from tests.support.pipelines.sana_parts import PROMPTS, SCALE, begin


@pytest.mark.parametrize(
    ("height", "width", "guidance", "negative", "parts"),
    [
        (32, 32, 1.0, None, {}),
        (32, 64, 4.5, None, {"timestep_scale": 0.001}),
        (64, 32, 4.5, "blurred", {"out_channels": 8}),  # which says a variance, too
    ],
)
def test_it_says_what_the_pipeline_says(
    height: int, width: int, guidance: float, negative: str | None, parts: dict[str, Any]
) -> None:
    pipe = tiny(**parts)
    oracle = drawn(height, width, guidance, negative_prompt=negative or "")(pipe)
    model = Sana(
        pipe, steps=STEPS, eta=0.0, guidance_scale=guidance, negative_prompt=negative, height=height, width=width
    )
    output, images, start = differences(model, oracle, PROMPTS, begin(height, width))
    assert start == 0
    assert output < 1e-5
    assert images < 1e-5


def test_its_lora_is_the_pipelines(tmp_path: Path) -> None:
    def model(pipe: Any) -> Sana:
        return Sana(pipe, steps=STEPS, eta=0.0, guidance_scale=4.5, height=32, width=32)

    apart, moved = lora_round_trip(
        model, tiny, drawn(32, 32, 4.5), Family.lora_targets, PROMPTS, begin(32, 32), tmp_path
    )
    assert apart < 1e-5 < 1e-3 < moved


def test_rewards_have_a_gradient() -> None:
    assert gradient_is_finite(Sana(tiny(), steps=STEPS, guidance_scale=4.5, height=32, width=32), PROMPTS)


def test_a_recipe_builds_it_from_a_folder(tmp_path: Path) -> None:
    from diffusers import DPMSolverMultistepScheduler

    pipe, search = tiny(), {"kind": "none", "steps": STEPS, "eta": 0, "guidance_scale": 4.5}
    pipe.scheduler = DPMSolverMultistepScheduler(**SOLVER)  # what the published ones come with
    model = of_recipe(pipe, tmp_path, PROMPTS, search=search, height=32, width=64)
    *apart, _ = differences(model, drawn(32, 64, 4.5)(tiny()), PROMPTS, begin(32, 64))
    assert max(apart) < 1e-5
    assert own_side(tmp_path) == 8 * SCALE


def test_its_steps_are_eulers_with_its_solvers_shift() -> None:
    """sigma = 3u / (1 + 2u) at equal steps of u, which end at the scheduler's least sigma."""
    from diffusers import DPMSolverMultistepScheduler

    assert not list(mistakes({**SOLVER, "_class_name": DPMSolverMultistepScheduler.__name__}, Family.schedulers))
    u = torch.linspace(1, 3 * 0.001 / (1 + 2 * 0.001), STEPS)
    model = Sana(tiny(), steps=STEPS, height=32, width=32)
    torch.testing.assert_close(model.schedule.sigma, torch.cat([torch.zeros(1), (3 * u / (1 + 2 * u)).flip(0)]))
    torch.testing.assert_close(model.schedule.timesteps, 1000 * model.schedule.sigma)


@pytest.mark.parametrize("other", [{"prediction_type": "epsilon"}, {"use_flow_sigmas": False}])
def test_a_solver_of_another_equation_is_refused(other: dict[str, Any]) -> None:
    scheduler = {"_class_name": "DPMSolverMultistepScheduler", **SOLVER, **other}
    (line,) = mistakes(scheduler, Family.schedulers)
    assert line.endswith("allowed: flow_prediction with use_flow_sigmas true")
