"""Floating-point operations of a module's call, counted on the meta device: nothing is computed, nothing allocated."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def unet_flops(config: dict[str, Any], tokens: int, batch: int = 1) -> int:
    """Of one pass of `batch` rows through the UNet of this configuration; a multiplication and an addition are two."""
    from diffusers import UNet2DConditionModel

    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    with torch.device("meta"), torch.no_grad():
        unet: Any = UNet2DConditionModel.from_config(config)
        x = torch.randn(batch, config["in_channels"], height, width)
        text = torch.randn(batch, tokens, config["cross_attention_dim"])
        steps = torch.zeros(batch, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            unet(x, steps, encoder_hidden_states=text)
    return counter.get_total_flops()


def decoder_flops(config: dict[str, Any], height: int, width: int, batch: int = 1) -> int:
    """Of decoding `batch` latents of this size by the VAE of this configuration."""
    from diffusers import AutoencoderKL

    with torch.device("meta"), torch.no_grad():
        vae: Any = AutoencoderKL.from_config(config)
        latents = torch.randn(batch, config["latent_channels"], height, width)
        with FlopCounterMode(display=False) as counter:
            vae.decode(latents)
    return counter.get_total_flops()
