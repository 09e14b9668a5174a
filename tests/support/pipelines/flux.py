"""`FluxPipeline` with tiny random weights, and what its own call draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dav_ray.diffusion.pipelines.flows.flux import Flux
from tests.support.encoders import clip, t5
from tests.support.oracle import Recorded, recorded
from tests.support.pipelines.vae import flow_autoencoder

STEPS, PROMPTS = 4, ["a cat", "two dogs, one of them asleep"]


def tiny(folder: Path, *, dev: bool = True) -> Any:
    """dev: with embedded guidance and a shift that depends on the size, as FLUX.1-dev; else as schnell."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(0)
    (tokenizer, one), (tokenizer_2, two) = clip(folder / "clip"), t5(folder / "t5", width=24)
    pipe = FluxPipeline(
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=12,
            num_attention_heads=2,
            joint_attention_dim=24,
            pooled_projection_dim=16,
            guidance_embeds=dev,
            axes_dims_rope=(4, 4, 4),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0 if dev else 1.0, use_dynamic_shifting=dev),
        vae=flow_autoencoder(),
        text_encoder=one,
        tokenizer=tokenizer,
        text_encoder_2=two,
        tokenizer_2=tokenizer_2,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def model_of(pipe: Any, *, height: int = 16, width: int = 16, guidance: float = 3.5) -> Flux:
    return Flux(pipe, steps=STEPS, eta=0.0, guidance_scale=guidance, height=height, width=width)


def begin(height: int = 16, width: int = 16) -> Tensor:
    return torch.randn(2, height * width // 16, 16, generator=torch.Generator().manual_seed(1))


def drawn(height: int = 16, width: int = 16, guidance: float = 3.5, *, dev: bool = True) -> Callable[[Any], Recorded]:
    """With as many tokens of text as the model was made for."""
    words: dict[str, Any] = {"height": height, "width": width, "guidance_scale": guidance}
    words |= {"num_inference_steps": STEPS, "max_sequence_length": 512 if dev else 256}
    return lambda pipe: recorded(pipe, PROMPTS, begin(height, width), **words)
