"""`LatentConsistencyModelPipeline` with tiny random weights, and what its own call draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dav_ray.diffusion.pipelines.few_step.latent_consistency import LatentConsistency
from tests.support.encoders import clip
from tests.support.oracle import Recorded, recorded
from tests.support.pipelines.vae import autoencoder

STEPS, SEED, PROMPTS = 4, 3, ["a cat", "two dogs"]


def tiny(folder: Path, **scheduler: Any) -> Any:
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    tokenizer, encoder = clip(folder / "tokenizer-files")
    options = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, **scheduler}
    pipe = LatentConsistencyModelPipeline(
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=16,
            attention_head_dim=4,
            time_cond_proj_dim=32,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        scheduler=LCMScheduler(**options),
        vae=autoencoder(scaling_factor=0.18215),
        text_encoder=encoder,
        tokenizer=tokenizer,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def model_of(pipe: Any, *, height: int = 16, width: int = 16, guidance: float = 8.5) -> LatentConsistency:
    return LatentConsistency(pipe, steps=STEPS, guidance_scale=guidance, height=height, width=width)


def begin(height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.randn(2, 4, height // 2, width // 2, generator=torch.Generator().manual_seed(1))


def drawn(height: int = 16, width: int = 16, guidance: float = 8.5) -> Callable[[Any], Recorded]:
    words = {"height": height, "width": width, "guidance_scale": guidance, "num_inference_steps": STEPS}
    return lambda pipe: recorded(pipe, PROMPTS, begin(height, width), generator=seeded(), **words)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)
