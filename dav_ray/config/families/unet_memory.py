"""Elements that a UNet and a VAE's decoder hold at once, from their configurations.

Per row of a UNet whose level l has maps of C_l x H_l x W_l, with n_l residual layers down and n_l + 1 up:

    sampling      skips (every down layer's map) + 12 maps of the first level
    training      44 maps of the level for each of its layers

and of a VAE's decoder with C maps arriving at full resolution H x W: 3 C H W, or 22 C H W with the reward's gradient.
The factors were counted on Stable Diffusion 1.5's shapes with attention that keeps no square matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SAMPLING, TRAINING = 12, 44
DECODING, DECODING_BACK = 3, 22


def unet_elements(config: Mapping[str, Any], back: bool) -> float:
    """Per state that goes through the network; back: with autograd."""
    channels, layers = config["block_out_channels"], config["layers_per_block"]
    depth = [layers] * len(channels) if isinstance(layers, int) else layers
    height, width = size_of(config)
    maps = [c * (height >> level) * (width >> level) for level, c in enumerate(channels)]
    if back:
        counts = [2 * n + 1 for n in depth]
        return TRAINING * (sum(m * n for m, n in zip(maps, counts, strict=True)) + 2 * maps[-1])
    skips = maps[0] + sum(m * n for m, n in zip(maps, depth, strict=True)) + sum(m // 4 for m in maps[:-1])
    return skips + SAMPLING * maps[0]


def decoder_elements(unet: Mapping[str, Any], vae: Mapping[str, Any], back: bool) -> float:
    """Per decoded image; back: with autograd."""
    channels = vae["block_out_channels"]
    height, width = (side * 2 ** (len(channels) - 1) for side in size_of(unet))
    return (DECODING_BACK if back else DECODING) * channels[min(1, len(channels) - 1)] * height * width


def size_of(unet: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of the latents."""
    size = unet["sample_size"]
    return (size, size) if isinstance(size, int) else (size[0], size[1])
