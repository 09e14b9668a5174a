"""Floating-point operations of a UNet's pass and of a VAE's decoding, from their configurations.

A multiplication and an addition are two operations. Convolutions, linear layers and attention's products are counted;
normalisation and activations, some 1 % of the work, are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dav_ray.config.families.unet_memory import size_of

Config = Mapping[str, Any]
BLOCKS = {"DownBlock2D", "UpBlock2D", "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"}
MID = "UNetMidBlock2DCrossAttn"


def unet_flops(unet: Config, tokens: int) -> float:
    """Of one pass of one state; tokens: length of the text. ValueError for blocks that are not counted here."""
    _known(unet, ("down_block_types", "up_block_types"), BLOCKS)
    if unet.get("mid_block_type", MID) != MID or unet.get("only_cross_attention"):
        raise ValueError("nothing is known of the work of such a UNet")
    channels, levels = unet["block_out_channels"], len(unet["block_out_channels"])
    depth, blocks = _each(unet["layers_per_block"], levels), _each(unet.get("transformer_layers_per_block", 1), levels)
    context, first, time = unet["cross_attention_dim"], channels[0], 4 * channels[0]
    sides = _sides(*size_of(unet), levels)

    def layer(kind: str, level: int, before: int) -> float:
        """A residual block, and its attention where it has some."""
        flops = _residual(before, channels[level], sides[level], time)
        if "CrossAttn" in kind:
            flops += _transformer(channels[level], sides[level], tokens, context, blocks[level])
        return flops

    flops = _conv(unet["in_channels"], first, sides[0]) + 2 * (first * time + time * time)
    width, skips = first, [first]
    for level, kind in enumerate(unet["down_block_types"]):
        for _ in range(depth[level]):
            flops += layer(kind, level, width)
            width = channels[level]
            skips.append(width)
        if level < levels - 1:
            flops += _conv(width, width, sides[level + 1])
            skips.append(width)
    flops += layer("CrossAttn", levels - 1, width) + _residual(width, width, sides[-1], time)
    for level, kind in zip(reversed(range(levels)), unet["up_block_types"], strict=True):
        for _ in range(depth[level] + 1):
            flops += layer(kind, level, width + skips.pop())
            width = channels[level]
        if level > 0:
            flops += _conv(width, width, sides[level - 1])
    return flops + _conv(first, unet["out_channels"], sides[0])


def decoder_flops(unet: Config, vae: Config) -> float:
    """Of one decoded image. ValueError for blocks that are not counted here."""
    _known(vae, ("up_block_types",), {"UpDecoderBlock2D"})
    channels = vae["block_out_channels"][::-1]
    height, width = size_of(unet)
    latent, area, inside = vae["latent_channels"], height * width, channels[0]
    flops = _conv(latent, latent, area, 1) * bool(vae.get("use_post_quant_conv", True)) + _conv(latent, inside, area)
    flops += 2 * _residual(inside, inside, area)
    if vae.get("mid_block_add_attention", True):
        flops += 4 * _linear(inside, inside, area) + _attention(area, area, inside)
    for level, outside in enumerate(channels):
        for number in range(vae["layers_per_block"] + 1):
            flops += _residual(outside if number else inside, outside, area)
        inside = outside
        if level < len(channels) - 1:
            area *= 4
            flops += _conv(inside, inside, area)
    return flops + _conv(inside, vae["out_channels"], area)


def _conv(before: int, after: int, area: int, kernel: int = 3) -> float:
    """area: of what comes out, in pixels."""
    return 2.0 * kernel * kernel * before * after * area


def _linear(before: int, after: int, rows: int) -> float:
    return 2.0 * before * after * rows


def _attention(queries: int, keys: int, width: int) -> float:
    """Products of queries and keys, and of weights and values."""
    return 4.0 * queries * keys * width


def _residual(before: int, after: int, area: int, time: int = 0) -> float:
    """Two convolutions, the step's embedding, and a shortcut where the width changes."""
    shortcut = _conv(before, after, area, 1) if before != after else 0.0
    return _conv(before, after, area) + _conv(after, after, area) + 2.0 * time * after + shortcut


def _transformer(width: int, area: int, tokens: int, context: int, blocks: int) -> float:
    """Projections in and out, and blocks of self-attention, attention to the text, and a gated feed-forward."""
    own = 4 * _linear(width, width, area) + _attention(area, area, width)
    text = 2 * _linear(width, width, area) + 2 * _linear(context, width, tokens) + _attention(area, tokens, width)
    forward = _linear(width, 8 * width, area) + _linear(4 * width, width, area)
    return 2 * _linear(width, width, area) + blocks * (own + text + forward)


def _sides(height: int, width: int, levels: int) -> list[int]:
    """Pixels of each level's maps: a convolution of stride 2 rounds up."""
    areas = []
    for _ in range(levels):
        areas.append(height * width)
        height, width = (height + 1) // 2, (width + 1) // 2
    return areas


def _each(value: int | list[int], levels: int) -> list[int]:
    return [value] * levels if isinstance(value, int) else list(value)


def _known(config: Config, keys: tuple[str, ...], blocks: set[str]) -> None:
    """ValueError if a block is another one."""
    others = {block for key in keys for block in config[key]} - blocks
    if others:
        raise ValueError(f"nothing is known of the work of {', '.join(sorted(others))}")
