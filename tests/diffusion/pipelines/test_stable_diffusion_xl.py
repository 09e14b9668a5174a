"""`StableDiffusionXLPipeline` on tiny random weights: the adapter says what the pipeline says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dav_ray.config.families.pipelines.stable_diffusion_xl import StableDiffusionXL as Family
from dav_ray.diffusion.pipelines.files import as_ddim
from dav_ray.diffusion.pipelines.stable_diffusion_xl import StableDiffusionXL
from tests.support.encoders import clip
from tests.support.oracle import differences, gradient_is_finite, lora_round_trip, recorded

SIDE, STEPS, PROMPTS = 16, 4, ["a cat", "two dogs"]


def tiny(folder: Path, **options: Any) -> Any:
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )

    torch.manual_seed(0)
    (tokenizer, one), (tokenizer_2, two) = clip(folder / "1"), clip(folder / "2", projected=True, act="gelu")
    pipe = StableDiffusionXLPipeline(
        unet=UNet2DConditionModel(
            sample_size=SIDE // 2,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=32,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 2),
            projection_class_embeddings_input_dim=6 * 8 + 16,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        scheduler=as_ddim(EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1)),
        vae=AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            layers_per_block=1,
            scaling_factor=0.13025,
        ),
        text_encoder=one,
        tokenizer=tokenizer,
        text_encoder_2=two,
        tokenizer_2=tokenizer_2,
        add_watermarker=False,
        **options,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("guidance, negative", [(1.0, None), (5.0, None), (5.0, "blurred")])
@pytest.mark.parametrize("zeros", [True, False])
def test_it_says_what_the_pipeline_says(tmp_path: Path, guidance: float, negative: str | None, zeros: bool) -> None:
    pipe = tiny(tmp_path, force_zeros_for_empty_prompt=zeros)
    start = torch.randn(2, 4, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(1))
    words = {"num_inference_steps": STEPS, "guidance_scale": guidance, "height": SIDE, "width": SIDE, "eta": 0.0}
    oracle = recorded(
        pipe, PROMPTS, start, negative_prompt=None if negative is None else [negative] * len(PROMPTS), **words
    )
    model = StableDiffusionXL(
        pipe, steps=STEPS, eta=0.0, guidance_scale=guidance, negative_prompt=negative, height=SIDE, width=SIDE
    )
    output, images, begin = differences(model, oracle, PROMPTS, start)
    assert begin == 0
    assert output < 1e-5
    assert images < 1e-5


def test_its_lora_is_the_pipelines_and_rewards_have_a_gradient(tmp_path: Path) -> None:
    start = torch.randn(2, 4, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(1))
    words: dict[str, Any] = {
        "num_inference_steps": STEPS,
        "guidance_scale": 3.0,
        "height": SIDE,
        "width": SIDE,
        "eta": 0.0,
    }

    def model_of(pipe: Any) -> StableDiffusionXL:
        return StableDiffusionXL(pipe, steps=STEPS, eta=0.0, guidance_scale=3.0, height=SIDE, width=SIDE)

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
