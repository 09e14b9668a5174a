"""`StableDiffusion3Pipeline` with tiny random weights, and what its own call draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dav_ray.diffusion.pipelines.stable_diffusion_3 import StableDiffusion3
from tests.support.encoders import clip, t5
from tests.support.oracle import Recorded, recorded
from tests.support.pipelines.vae import flow_autoencoder

SIDE, STEPS, PROMPTS = 16, 4, ["a cat", "two dogs"]


def tiny(folder: Path, *, with_t5: bool = True, **scheduler: Any) -> Any:
    from diffusers import (
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
        vae=flow_autoencoder(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=one,
        tokenizer=tokenizer,
        text_encoder_2=two,
        tokenizer_2=tokenizer_2,
        text_encoder_3=three,
        tokenizer_3=tokenizer_3,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def model_of(pipe: Any, *, guidance: float = 3.0) -> StableDiffusion3:
    return StableDiffusion3(pipe, steps=STEPS, eta=0.0, guidance_scale=guidance, height=SIDE, width=SIDE)


def begin() -> Tensor:
    return torch.randn(2, 4, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(1))


def drawn(guidance: float = 3.0) -> Callable[[Any], Recorded]:
    words = {"num_inference_steps": STEPS, "guidance_scale": guidance, "height": SIDE, "width": SIDE}
    return lambda pipe: recorded(pipe, PROMPTS, begin(), **words)
