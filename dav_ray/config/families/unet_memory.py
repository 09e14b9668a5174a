"""Elements that a UNet and a VAE's decoder hold at once, from their configurations.

Per row of a UNet whose level l has maps of C_l x H_l x W_l, with n_l residual layers down and n_l + 1 up:

    sampling      skips (every down layer's map) + 12 maps of the first level
    training      35 maps of the level for each of its layers; of half-precision weights 31, and 6 in float32: what the
                  adapters take; with autocast 30, and 9 in float32: what norms keep
    checkpointed  6.2 maps of the level for each of its layers, with autocast 5.1 and 1.1 in float32; and 0.7 of
                  a layer of the first level, which is computed again (those of the way up are larger)

and of a VAE's decoder with C maps arriving at full resolution H x W: 3 C H W, or 22 C H W with the reward's gradient.
The factors were counted on Stable Diffusion 1.5's shapes with attention that keeps no square matrices and adapters on
the attention layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dav_ray.config.networks.held import Held

SAMPLING = 12
# training: maps in the precision of the calls, and in float32 whatever that is
WHOLE, HALF, AUTOCAST = (35.0, 0.0), (31.0, 6.2), (29.8, 8.8)
KEPT, KEPT_AUTOCAST = (6.2, 0.0), (5.1, 1.1)
AGAIN = 0.7
DECODING, DECODING_BACK = 3, 22


def unet_training(config: Mapping[str, Any], *, half: bool, autocast: bool, checkpointing: bool) -> Held:
    """Per state that goes through the network with autograd. half: weights are of half precision; autocast: calls are,
    whatever the weights."""
    maps, depth = _levels(config)
    counts = [2 * n + 1 for n in depth]
    layers = sum(m * n for m, n in zip(maps, counts, strict=True)) + 2 * maps[-1]
    each = AUTOCAST if autocast else HALF if half else WHOLE
    if not checkpointing:
        return Held(each[0] * layers, each[1] * layers)
    kept = KEPT_AUTOCAST if autocast else KEPT
    again = AGAIN * maps[0]
    return Held(kept[0] * layers + each[0] * again, kept[1] * layers + each[1] * again)


def unet_elements(config: Mapping[str, Any]) -> float:
    """Per state that goes through the network without autograd."""
    maps, depth = _levels(config)
    skips = maps[0] + sum(m * n for m, n in zip(maps, depth, strict=True)) + sum(m // 4 for m in maps[:-1])
    return skips + SAMPLING * maps[0]


def _levels(config: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Elements of a level's map, and its residual layers down."""
    channels, layers = config["block_out_channels"], config["layers_per_block"]
    height, width = size_of(config)
    maps = [c * (height >> level) * (width >> level) for level, c in enumerate(channels)]
    return maps, [layers] * len(channels) if isinstance(layers, int) else list(layers)


def decoder_elements(unet: Mapping[str, Any], vae: Mapping[str, Any], back: bool) -> float:
    """Per decoded image; back: with autograd."""
    channels = vae["block_out_channels"]
    height, width = (side * 2 ** (len(channels) - 1) for side in size_of(unet))
    return (DECODING_BACK if back else DECODING) * channels[min(1, len(channels) - 1)] * height * width


def size_of(unet: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of the latents."""
    size = unet["sample_size"]
    return (size, size) if isinstance(size, int) else (size[0], size[1])
