"""AutoencoderDC, Sana's: images 32 times as large as the latents, through residual and linear-attention blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dav_ray.config.networks.counted import Counted, Inputs

WIDENED = 4  # of a gated feed-forward, before its halves are multiplied


def vae_dc(config: Mapping[str, Any], at: Inputs) -> Counted:
    """The work is the decoder's. ValueError for blocks that are not counted here."""
    made, latents = Counted(), config["latent_channels"]
    if 0 in (config["encoder_layers_per_block"][0], config["decoder_layers_per_block"][0]):
        raise ValueError("nothing is known of the work of an AutoencoderDC without blocks at the images' size")
    colours = config.get("in_channels", 3)
    levels = _Side("encoder.down_blocks", config, "encoder")
    widths, top = levels.widths, len(levels.widths) - 1
    made.conv("encoder.conv_in", colours, widths[0], 0)
    shuffled = config.get("downsample_block_type", "pixel_unshuffle") == "pixel_unshuffle"
    for level, width in enumerate(widths):
        number = levels.blocks(made, level, 0, first=0)
        if level < top and number:
            after = widths[level + 1] // 4 if shuffled else widths[level + 1]
            made.conv(f"encoder.down_blocks.{level}.{number}.conv", width, after, 0)
    made.conv("encoder.conv_out", widths[top], latents, 0)
    _decoder(made, config, at, colours)
    return made


def _decoder(made: Counted, config: Mapping[str, Any], at: Inputs, colours: int) -> None:
    levels, area = _Side("decoder.up_blocks", config, "decoder"), at.height * at.width
    widths, top = levels.widths, len(levels.widths) - 1
    enlarged = config.get("upsample_block_type", "pixel_shuffle") == "interpolate"
    made.conv("decoder.conv_in", config["latent_channels"], widths[top], area)
    for level in reversed(range(top + 1)):
        before = level < top and levels.count[level] > 0
        if before:
            after = widths[level] if enlarged else 4 * widths[level]
            made.conv(f"decoder.up_blocks.{level}.0.conv", widths[level + 1], after, 4 * area if enlarged else area)
            area *= 4
        levels.blocks(made, level, area, first=int(before))
    made.norm("decoder.norm_out", widths[0])
    made.conv("decoder.conv_out", widths[0], colours, area)


class _Side:
    """The blocks of the encoder or of the decoder."""

    def __init__(self, name: str, config: Mapping[str, Any], side: str) -> None:
        self.name, self.depth = name, config["attention_head_dim"]
        self.widths: Sequence[int] = config[f"{side}_block_out_channels"]
        self.count: Sequence[int] = config[f"{side}_layers_per_block"]
        self.scales = config[f"{side}_qkv_multiscales"]
        kinds = config[f"{side}_block_types"]
        self.kinds: Sequence[str] = [kinds] * len(self.widths) if isinstance(kinds, str) else kinds

    def blocks(self, made: Counted, level: int, area: float, *, first: int) -> int:
        """Those of a level, numbered from `first`; the number that follows."""
        for number in range(first, first + self.count[level]):
            name, width = f"{self.name}.{level}.{number}", self.widths[level]
            if self.kinds[level] == "ResBlock":
                made.conv(f"{name}.conv1", width, width, area)
                made.conv(f"{name}.conv2", width, width, area, bias=False)
                made.norm(f"{name}.norm", width)
            elif self.kinds[level] == "EfficientViTBlock":
                self._attention(made, f"{name}.attn", width, self.scales[level], area)
                _forward(made, f"{name}.conv_out", width, area)
            else:
                raise ValueError(f"nothing is known of the work of {self.kinds[level]}")
        return first + self.count[level]

    def _attention(self, made: Counted, name: str, width: int, scales: Sequence[int], area: float) -> None:
        """Linear, at the layer's own scale and at wider ones."""
        heads = width // self.depth
        inside = heads * self.depth
        for part in ("to_q", "to_k", "to_v"):
            made.linear(f"{name}.{part}", width, inside, area, bias=False)
        for number, kernel in enumerate(scales):
            scale = f"{name}.to_qkv_multiscale.{number}"
            made.conv(f"{scale}.proj_in", 3 * inside, 3 * inside, area, (kernel, kernel), groups=3 * inside, bias=False)
            made.conv(f"{scale}.proj_out", 3 * inside, 3 * inside, area, (1, 1), groups=3 * heads, bias=False)
        # a row more keeps the sum of the weights
        made.flops += 4.0 * (1 + len(scales)) * heads * self.depth * (self.depth + 1) * area
        made.linear(f"{name}.to_out", inside * (1 + len(scales)), width, area, bias=False)
        made.norm(f"{name}.norm_out", width)


def _forward(made: Counted, name: str, width: int, area: float) -> None:
    inside = 2 * WIDENED * width
    made.conv(f"{name}.conv_inverted", width, inside, area, (1, 1))
    made.conv(f"{name}.conv_depth", inside, inside, area, groups=inside)
    made.conv(f"{name}.conv_point", WIDENED * width, width, area, (1, 1), bias=False)
    made.norm(f"{name}.norm", width)
