"""`ZImagePipeline` with tiny random weights, and what its own call draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dav_ray.diffusion.pipelines.flows.z_image import ZImage
from tests.support.encoders import qwen3
from tests.support.oracle import Recorded, recorded
from tests.support.pipelines.vae import flow_autoencoder

# one text on each side of 32 tokens, a multiple of which the network takes
STEPS, PROMPTS = 4, ["a cat", "two dogs, one of them asleep"]


def tiny(**scheduler: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

    torch.manual_seed(0)
    tokenizer, encoder = qwen3()
    pipe = ZImagePipeline(
        transformer=ZImageTransformer2DModel(
            in_channels=4,
            dim=24,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[4, 4, 4],
            axes_lens=[256, 32, 32],
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
        vae=flow_autoencoder(),
        text_encoder=encoder,
        tokenizer=tokenizer,
    )
    for token in (pipe.transformer.x_pad_token, pipe.transformer.cap_pad_token):
        torch.nn.init.normal_(token)  # zeros until trained
    pipe.set_progress_bar_config(disable=True)
    return pipe


def model_of(pipe: Any, *, height: int = 16, width: int = 16, guidance: float = 4.0, **options: Any) -> ZImage:
    return ZImage(pipe, steps=STEPS, eta=0.0, guidance_scale=guidance, height=height, width=width, **options)


def begin(height: int = 16, width: int = 16) -> Tensor:
    return torch.randn(2, 4, height // 2, width // 2, generator=torch.Generator().manual_seed(1))


def drawn(
    height: int = 16, width: int = 16, guidance: float = 4.0, negative: str | None = None
) -> Callable[[Any], Recorded]:
    words = {"height": height, "width": width, "guidance_scale": guidance, "num_inference_steps": STEPS}
    without = None if negative is None else [negative] * len(PROMPTS)
    return lambda pipe: recorded(pipe, PROMPTS, begin(height, width), negative_prompt=without, **words)
