"""`StableDiffusionXLPipeline` with tiny random weights, and what its own call draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dav_ray.diffusion.pipelines.files import as_ddim
from dav_ray.diffusion.pipelines.stable_diffusion_xl import StableDiffusionXL
from tests.support.encoders import clip
from tests.support.oracle import Recorded, recorded
from tests.support.pipelines.vae import autoencoder

SIDE, STEPS, PROMPTS = 16, 4, ["a cat", "two dogs"]


def tiny(folder: Path, **options: Any) -> Any:
    from diffusers import (
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
        vae=autoencoder(scaling_factor=0.13025),
        text_encoder=one,
        tokenizer=tokenizer,
        text_encoder_2=two,
        tokenizer_2=tokenizer_2,
        add_watermarker=False,
        **options,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def model_of(pipe: Any, *, guidance: float = 3.0, negative: str | None = None) -> StableDiffusionXL:
    options = {"guidance_scale": guidance, "negative_prompt": negative}
    return StableDiffusionXL(pipe, steps=STEPS, eta=0.0, height=SIDE, width=SIDE, **options)


def begin() -> Tensor:
    return torch.randn(2, 4, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(1))


def drawn(guidance: float = 3.0, negative: str | None = None) -> Callable[[Any], Recorded]:
    words = {"num_inference_steps": STEPS, "guidance_scale": guidance, "height": SIDE, "width": SIDE, "eta": 0.0}
    without = None if negative is None else [negative] * len(PROMPTS)
    return lambda pipe: recorded(pipe, PROMPTS, begin(), negative_prompt=without, **words)
