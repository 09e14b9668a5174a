"""`LatentConsistencyModelPipeline` on tiny random weights: the adapter says what the pipeline says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dav_ray.config.checks.preflight import model_mistakes
from dav_ray.config.families.pipelines.latent_consistency import LatentConsistency as Family
from dav_ray.config.schema import Config
from tests.support.oracle import differences, gradient_is_finite, lora_round_trip, of_recipe, own_side
from tests.support.pipelines.latent_consistency import PROMPTS, STEPS, begin, drawn, model_of, seeded, tiny


@pytest.mark.parametrize(
    ("height", "width", "guidance", "scheduler"),
    [
        (16, 16, 8.5, {}),
        (16, 24, 1.0, {"prediction_type": "v_prediction"}),
        (24, 16, 8.5, {"timestep_scaling": 0.001}),  # where the boundary's c_skip is not small
    ],
)
def test_it_says_what_the_pipeline_says(
    tmp_path: Path, height: int, width: int, guidance: float, scheduler: dict[str, Any]
) -> None:
    """The noise included: it is drawn anew at each step but the last."""
    pipe = tiny(tmp_path, **scheduler)
    oracle = drawn(height, width, guidance)(pipe)
    model = model_of(pipe, height=height, width=width, guidance=guidance)
    output, images, start = differences(model, oracle, PROMPTS, begin(height, width), noise=seeded())
    assert start == 0
    assert output < 1e-5
    assert images < 1e-5
    assert [model.deterministic(t) for t in range(1, STEPS + 1)] == [True] + [False] * (STEPS - 1)


def test_the_network_is_told_the_guidance(tmp_path: Path) -> None:
    one, other = (drawn(guidance=guidance)(tiny(tmp_path)).outputs[0] for guidance in (1.0, 8.5))
    assert (one - other).abs().max() > 1e-4


def test_its_lora_is_the_pipelines(tmp_path: Path) -> None:
    apart, moved = lora_round_trip(
        model_of,
        lambda: tiny(tmp_path),
        drawn(),
        Family.lora_targets,
        PROMPTS,
        begin(),
        tmp_path / "policy",
        seeded(),
    )
    assert apart < 1e-5 < 1e-3 < moved


def test_rewards_have_a_gradient(tmp_path: Path) -> None:
    assert gradient_is_finite(model_of(tiny(tmp_path)), PROMPTS)


def test_a_recipe_builds_it_from_a_folder(tmp_path: Path) -> None:
    search = {"steps": STEPS, "guidance_scale": 8.5}
    model = of_recipe(tiny(tmp_path), tmp_path / "pipe", PROMPTS, search=search, height=16, width=32)
    *apart, _ = differences(model, drawn(16, 32)(tiny(tmp_path)), PROMPTS, begin(16, 32), noise=seeded())
    assert max(apart) < 1e-5
    assert own_side(tmp_path / "pipe") == 16


def test_what_it_can_not_draw_is_one_line_each(tmp_path: Path) -> None:
    folder = tmp_path / "pipe"
    tiny(tmp_path, clip_sample=True).save_pretrained(folder)
    config = folder / "unet/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "time_cond_proj_dim": None}))
    section = {"path": str(folder), "negative_prompt": "blurred"}
    sections = {"model": section, "prompts": ["a"], "reward": {"kind": "brightness"}, "search": {"steps": 51}}
    key = f"model.path = {folder}"
    assert list(model_mistakes(Config.model_validate(sections))) == [
        f"{key}: can't be searched: the scheduler clips its guesses; allowed: clip_sample false",
        "search.steps = 51: out of range; allowed: 2 to 50, those of its distillation",
        f"{key}: its unet takes no guidance scale; allowed: one with time_cond_proj_dim",
        "model.negative_prompt = blurred: a LatentConsistencyModelPipeline has no use for it; allowed: null",
    ]
