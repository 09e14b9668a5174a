"""Configurations of models on the hub that are often used, so that a plan needs no download. What decides about the
work of their networks is here, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TEXT_LENGTH = 77  # tokens of CLIP's text encoders

_UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
_VAE = {
    "latent_channels": 4,
    "out_channels": 3,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
SD1 = {"unet": {**_UNET, "cross_attention_dim": 768}, "vae": _VAE}
SD2_BASE = {"unet": {**_UNET, "cross_attention_dim": 1024}, "vae": _VAE}
SD2 = {"unet": {**SD2_BASE["unet"], "sample_size": 96}, "vae": _VAE}

PUBLISHED = {
    "CompVis/stable-diffusion-v1-4": SD1,
    "runwayml/stable-diffusion-v1-5": SD1,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": SD1,
    "stabilityai/stable-diffusion-2-base": SD2_BASE,
    "stabilityai/stable-diffusion-2-1-base": SD2_BASE,
    "stabilityai/stable-diffusion-2": SD2,
    "stabilityai/stable-diffusion-2-1": SD2,
}


def published(hub_id: str, part: str) -> Mapping[str, Any]:
    """The configuration of a part of the model; empty where it is not one of these."""
    return PUBLISHED.get(hub_id, {}).get(part, {})
