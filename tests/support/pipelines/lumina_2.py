"""`Lumina2Pipeline` with tiny random weights, and what its own call draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dav_ray.diffusion.pipelines.flows.lumina_2 import Lumina2
from tests.support.encoders import gemma
from tests.support.oracle import Recorded, recorded
from tests.support.pipelines.vae import flow_autoencoder

STEPS, PROMPTS = 4, ["a cat", "two dogs, one of them asleep"]


def tiny(**scheduler: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel

    torch.manual_seed(0)
    tokenizer, encoder = gemma(layers=2)
    pipe = Lumina2Pipeline(
        transformer=Lumina2Transformer2DModel(
            sample_size=4,
            in_channels=4,
            hidden_size=24,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=8,
            axes_dim_rope=(4, 4, 4),
            axes_lens=(300, 16, 16),
            cap_feat_dim=16,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 6.0, **scheduler}),
        vae=flow_autoencoder(levels=4),  # the pipeline takes it that images are eight times as large as latents
        text_encoder=encoder,
        tokenizer=tokenizer,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def model_of(pipe: Any, *, height: int = 32, width: int = 32, guidance: float = 4.0, **options: Any) -> Lumina2:
    return Lumina2(pipe, steps=STEPS, eta=0.0, guidance_scale=guidance, height=height, width=width, **options)


def begin(height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(2, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(1))


def drawn(
    height: int = 32, width: int = 32, guidance: float = 4.0, negative: str | None = None
) -> Callable[[Any], Recorded]:
    words = {"height": height, "width": width, "guidance_scale": guidance, "num_inference_steps": STEPS}
    without = None if negative is None else [negative] * len(PROMPTS)
    return lambda pipe: recorded(pipe, PROMPTS, begin(height, width), negative_prompt=without, **words)
