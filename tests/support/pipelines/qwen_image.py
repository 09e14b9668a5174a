"""`QwenImagePipeline` with tiny random weights, and what its own call draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dav_ray.diffusion.pipelines.flows.qwen_image import QwenImage
from tests.support.encoders import qwen2_vl
from tests.support.oracle import Recorded, recorded

STEPS, PROMPTS = 4, ["a cat", "two dogs, and a very long sentence about them"]


def tiny(**scheduler: Any) -> Any:
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )

    torch.manual_seed(0)
    tokenizer, encoder = qwen2_vl()
    pipe = QwenImagePipeline(
        transformer=QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(2, 2, 4),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(
            **{"use_dynamic_shifting": True, "max_shift": 0.9, "shift_terminal": 0.02, **scheduler}
        ),
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=[0.1, -0.2, 0.3, 0.4],
            latents_std=[1.0, 2.0, 0.5, 1.5],
        ),
        text_encoder=encoder,
        tokenizer=tokenizer,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def model_of(
    pipe: Any, *, height: int = 16, width: int = 16, guidance: float = 4.0, negative: str | None = " "
) -> QwenImage:
    options = {"guidance_scale": guidance, "negative_prompt": negative}
    return QwenImage(pipe, steps=STEPS, eta=0.0, height=height, width=width, **options)


def begin(height: int = 16, width: int = 16) -> Tensor:
    return torch.randn(2, height * width // 64, 16, generator=torch.Generator().manual_seed(1))


def drawn(
    height: int = 16, width: int = 16, guidance: float = 4.0, negative: str | None = " "
) -> Callable[[Any], Recorded]:
    words: dict[str, Any] = {"height": height, "width": width, "true_cfg_scale": guidance}
    words |= {"negative_prompt": negative and [negative] * 2, "num_inference_steps": STEPS}
    return lambda pipe: recorded(pipe, PROMPTS, begin(height, width), **words)
