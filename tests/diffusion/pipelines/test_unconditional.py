"""`DDPMPipeline` and `DDIMPipeline` on tiny random weights: the adapter says what the pipeline says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dav_ray.config.build import aligned, build
from dav_ray.config.checks.preflight import model_mistakes
from dav_ray.config.plan import plan
from dav_ray.diffusion.pipelines.unconditional import Unconditional
from tests.support.oracle import gradient_is_finite
from tests.support.pipelines.unconditional import NONE, STEPS, apart, config_of, drawn, moved_policy, tiny


@pytest.mark.parametrize(
    ("eta", "scheduler", "unet"),
    [
        (0.0, {}, {}),  # whose guesses are clipped, as by default
        (1.0, {}, {"sample_size": (8, 16)}),
        (0.5, {"clip_sample": False, "prediction_type": "v_prediction"}, {"in_channels": 1, "out_channels": 1}),
    ],
)
def test_it_says_what_the_pipeline_says(eta: float, scheduler: dict[str, Any], unet: dict[str, Any]) -> None:
    pipe = tiny(scheduler=scheduler, **unet)
    output, images = apart(Unconditional(pipe, steps=STEPS, eta=eta), pipe, eta)
    assert output < 1e-5
    assert images < 1e-5


def test_a_variance_that_the_network_says_is_left_out() -> None:
    pipe = tiny(out_channels=6)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model = Unconditional(pipe, steps=STEPS)
        said = pipe.unet(x, model.schedule.timesteps[2]).sample[:, :3]
        torch.testing.assert_close(model._evaluate(pipe.unet, x, torch.tensor([2, 2]), NONE), said)


def test_rewards_have_a_gradient() -> None:
    pipe = tiny(scheduler={"clip_sample": False})
    assert gradient_is_finite(Unconditional(pipe, steps=STEPS), NONE)


@pytest.mark.parametrize("ddim", [True, False])
def test_a_recipe_without_prompts_builds_it_from_a_folder(tmp_path: Path, ddim: bool) -> None:
    tiny(ddim=ddim).save_pretrained(tmp_path)
    config = config_of(tmp_path, {"guidance_scale": 5.0})
    assert config.prompts == ("",) and not list(model_mistakes(config))
    assert plan(config).evaluations == 1 + (STEPS - 1) * 2  # one pass each, whatever the guidance
    model: Any = build(config)
    output, images = apart(model, tiny(), 1.0)
    assert output < 1e-5
    assert images < 1e-5


@pytest.mark.parametrize("parameters", ["lora", "full"])
def test_an_aligned_pipeline_is_one_of_its_kind(tmp_path: Path, parameters: str) -> None:
    """It draws what the policy draws, also when it was saved and loaded again."""
    from diffusers import DDIMPipeline

    tiny().save_pretrained(tmp_path / "pipe")
    config = config_of(tmp_path / "pipe", mstep={"parameters": parameters, "lora": {"rank": 2}})
    model, moved = moved_policy(config, tmp_path / "policy")
    assert (tmp_path / "policy" / model.policy_file).is_file()

    pipe = aligned(config, tmp_path / "policy")
    pipe.save_pretrained(tmp_path / "aligned")
    again: Any = DDIMPipeline.from_pretrained(tmp_path / "aligned")
    for one in (pipe, again):
        one.set_progress_bar_config(disable=True)
        output, images = apart(model, one, 1.0)
        assert output < 1e-5
        assert images < 1e-5
    assert (drawn(pipe, eta=1.0).images - drawn(tiny(), eta=1.0).images).abs().max() > 1e-3
    stored = load_file(tmp_path / "policy" / model.policy_file)
    assert all(torch.equal(tensor, moved[name]) for name, tensor in stored.items()) and stored.keys() == moved.keys()


def test_older_names_of_attention_layers_are_known(tmp_path: Path) -> None:
    """Files from before diffusers 0.13 have them, and diffusers renames them."""
    tiny().save_pretrained(tmp_path)
    file = tmp_path / "unet/diffusion_pytorch_model.safetensors"
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    state = load_file(file)
    for new, name in old.items():
        state = {key.replace(new, name): tensor for key, tensor in state.items()}
    save_file(state, file, {"format": "pt"})
    config = config_of(tmp_path)
    assert not list(model_mistakes(config))
    model: Any = build(config)
    assert max(apart(model, tiny(), 1.0)) < 1e-5


def test_what_it_can_not_draw_is_one_line_each(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    file = tmp_path / "unet/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "in_channels": 4, "num_class_embeds": 10}))
    config = config_of(tmp_path, {"steps": 1001})
    config = config.model_copy(update={"model": config.model.model_copy(update={"height": 16})})
    key = f"model.path = {tmp_path}"
    assert list(model_mistakes(config)) == [
        "search.steps = 1001: out of range; allowed: 2 to 1000, the model's training steps",
        f"{key}: its unet draws 4 channels; allowed: 1 (grey) or 3 (colours)",
        f"{key}: its unet is told a class; allowed: one without class_embed_type and num_class_embeds",
        "model.height = 16: a DDIMPipeline has no use for it; allowed: null",
    ]
