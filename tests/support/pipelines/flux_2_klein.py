"""`Flux2KleinPipeline` with tiny random weights, and what its own call draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dav_ray.diffusion.pipelines.flows.flux_2_klein import Flux2Klein
from tests.support.encoders import qwen3
from tests.support.oracle import Recorded, recorded

STEPS, PROMPTS = 4, ["a cat", "two dogs, one of them asleep"]


def tiny(*, distilled: bool = False) -> Any:
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )

    torch.manual_seed(0)
    tokenizer, encoder = qwen3(width=8, layers=28, causal=True)  # layers 9, 18 and 27 are read
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=16,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    pipe = Flux2KleinPipeline(
        transformer=Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        is_distilled=distilled,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def model_of(pipe: Any, *, height: int = 16, width: int = 16, guidance: float = 1.0) -> Flux2Klein:
    return Flux2Klein(pipe, steps=STEPS, eta=0.0, guidance_scale=guidance, height=height, width=width)


def patches(height: int = 16, width: int = 16) -> Tensor:
    """As the pipeline takes them, [B, 4 C, H/2, W/2]."""
    return torch.randn(2, 16, height // 4, width // 4, generator=torch.Generator().manual_seed(1))


def begin(height: int = 16, width: int = 16) -> Tensor:
    return patches(height, width).flatten(2).transpose(1, 2)


def drawn(height: int = 16, width: int = 16, guidance: float = 1.0) -> Callable[[Any], Recorded]:
    words = {"height": height, "width": width, "guidance_scale": guidance, "num_inference_steps": STEPS}
    return lambda pipe: recorded(pipe, PROMPTS, patches(height, width), **words)
