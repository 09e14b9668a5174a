"""The parts that pipelines of the Sana family share, at tiny sizes with random weights."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.encoders import gemma

SCALE, PROMPTS = 4, ["a cat", "two dogs, and a very long sentence about them"]


def tiny_parts(*, out_channels: int = 4, **options: Any) -> dict[str, Any]:
    """All parts of a pipeline but its scheduler."""
    from diffusers import AutoencoderDC, SanaTransformer2DModel

    torch.manual_seed(0)
    tokenizer, encoder = gemma()
    blocks = {
        "block_types": ("ResBlock", "EfficientViTBlock", "EfficientViTBlock"),
        "block_out_channels": (8, 8, 8),
        "layers_per_block": (1, 1, 1),
        "qkv_multiscales": ((), (5,), (5,)),
    }
    return {
        "tokenizer": tokenizer,
        "text_encoder": encoder,
        "vae": AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            scaling_factor=0.41407,
            **{f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in blocks.items()},
        ),
        "transformer": SanaTransformer2DModel(
            in_channels=4,
            out_channels=out_channels,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=4,
            num_cross_attention_heads=2,
            cross_attention_head_dim=4,
            cross_attention_dim=8,
            caption_channels=16,
            sample_size=8,
            **options,
        ),
    }


def begin(height: int, width: int) -> torch.Tensor:
    return torch.randn(2, 4, height // SCALE, width // SCALE, generator=torch.Generator().manual_seed(1))
