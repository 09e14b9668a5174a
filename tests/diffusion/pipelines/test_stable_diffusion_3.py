"""`StableDiffusion3Pipeline` on tiny random weights: the adapter says what the pipeline says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dav_ray.config.families.pipelines.stable_diffusion_3 import StableDiffusion3 as Family
from dav_ray.diffusion.pipelines.stable_diffusion_3 import StableDiffusion3
from tests.support.encoders import clip, t5
from tests.support.oracle import differences, gradient_is_finite, lora_round_trip, of_recipe, recorded

SIDE, STEPS, PROMPTS = 16, 4, ["a cat", "two dogs"]


def tiny(folder: Path, *, with_t5: bool = True, **scheduler: Any) -> Any:
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    torch.manual_seed(0)
    (tokenizer, one), (tokenizer_2, two) = (clip(folder / str(i), projected=True, width=16 + 8 * i) for i in range(2))
    tokenizer_3, three = t5(folder / "t5", width=40) if with_t5 else (None, None)
    pipe = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=40,
            caption_projection_dim=16,
            pooled_projection_dim=40,
            pos_embed_max_size=8,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
        vae=AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            layers_per_block=1,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=1.5305,
            shift_factor=0.0609,
        ),
        text_encoder=one,
        tokenizer=tokenizer,
        text_encoder_2=two,
        tokenizer_2=tokenizer_2,
        text_encoder_3=three,
        tokenizer_3=tokenizer_3,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("guidance", [1.0, 4.5])
@pytest.mark.parametrize("options", [{}, {"with_t5": False}, {"use_dynamic_shifting": True}])
def test_it_says_what_the_pipeline_says(tmp_path: Path, guidance: float, options: dict[str, Any]) -> None:
    pipe = tiny(tmp_path, **options)
    start = torch.randn(2, 4, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(1))
    oracle = recorded(pipe, PROMPTS, start, num_inference_steps=STEPS, guidance_scale=guidance, height=SIDE, width=SIDE)
    model = StableDiffusion3(pipe, steps=STEPS, eta=0.0, guidance_scale=guidance, height=SIDE, width=SIDE)
    output, images, begin = differences(model, oracle, PROMPTS, start)
    assert begin == 0
    assert output < 1e-5
    assert images < 1e-5


def test_its_lora_is_the_pipelines_and_rewards_have_a_gradient(tmp_path: Path) -> None:
    start = torch.randn(2, 4, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(1))
    words: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "height": SIDE, "width": SIDE}

    def model_of(pipe: Any) -> StableDiffusion3:
        return StableDiffusion3(pipe, steps=STEPS, eta=0.0, guidance_scale=3.0, height=SIDE, width=SIDE)

    apart, moved = lora_round_trip(
        model_of,
        lambda: tiny(tmp_path / "tokenizers"),
        lambda pipe: recorded(pipe, PROMPTS, start, **words),
        Family.lora_targets,
        PROMPTS,
        start,
        tmp_path / "policy",
    )
    assert apart < 1e-5 < 1e-3 < moved
    assert gradient_is_finite(model_of(tiny(tmp_path / "tokenizers")), PROMPTS)


@pytest.mark.parametrize("with_t5", [True, False])
def test_a_recipe_builds_it_from_a_folder(tmp_path: Path, with_t5: bool) -> None:
    search = {"kind": "none", "steps": STEPS, "eta": 0, "guidance_scale": 3.0}
    size = {"height": SIDE, "width": SIDE, "max_sequence_length": 4}
    pipe = tiny(tmp_path, with_t5=with_t5)
    start = torch.randn(2, 4, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(1))
    oracle = recorded(pipe, PROMPTS, start, num_inference_steps=STEPS, guidance_scale=3.0, **size)
    model = of_recipe(pipe, tmp_path / "pipe", PROMPTS, search=search, **size)
    *apart, _ = differences(model, oracle, PROMPTS, start)
    assert max(apart) < 1e-5
