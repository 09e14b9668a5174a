"""UNet2DConditionModel with attention to a text: Stable Diffusion 1, 2 and XL, and models distilled from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dav_ray.config.networks.counted import Counted, Inputs

BLOCKS = {"DownBlock2D", "UpBlock2D", "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"}
MID = "UNetMidBlock2DCrossAttn"


def unet(config: Mapping[str, Any], at: Inputs) -> Counted:
    """ValueError for blocks that are not counted here."""
    known(config, ("down_block_types", "up_block_types"), BLOCKS)
    if config.get("mid_block_type", MID) != MID or config.get("only_cross_attention"):
        raise ValueError("nothing is known of the work of such a UNet")
    return _UNet(config, at).made


class _UNet:
    """Counts the layers in the order of the pass."""

    def __init__(self, config: Mapping[str, Any], at: Inputs) -> None:
        self.made, self.config, self.text = Counted(), config, at.text
        self.channels, levels = config["block_out_channels"], len(config["block_out_channels"])
        self.depth = _each(config["layers_per_block"], levels)
        self.blocks = _each(config.get("transformer_layers_per_block", 1), levels)
        self.areas, self.time = _areas(at.height, at.width, levels), 4 * self.channels[0]
        self._embeddings()
        skips = self._down()
        top = levels - 1
        for number in range(2):
            self._residual(f"mid_block.resnets.{number}", self.channels[top], top)
        self._attention("mid_block.attentions.0", top)
        self._up(skips)

    def _embeddings(self) -> None:
        made, config, first = self.made, self.config, self.channels[0]
        made.conv("conv_in", config["in_channels"], first, self.areas[0])
        made.linear("time_embedding.linear_1", first, self.time)
        made.linear("time_embedding.linear_2", self.time, self.time)
        if guidance := config.get("time_cond_proj_dim"):
            made.linear("time_embedding.cond_proj", guidance, first, bias=False)
        if config.get("addition_embed_type"):
            made.linear("add_embedding.linear_1", config["projection_class_embeddings_input_dim"], self.time)
            made.linear("add_embedding.linear_2", self.time, self.time)

    def _down(self) -> list[int]:
        """Channels of the maps that the way up takes over."""
        width, skips = self.channels[0], [self.channels[0]]
        for level, kind in enumerate(self.config["down_block_types"]):
            name = f"down_blocks.{level}"
            for number in range(self.depth[level]):
                self._layer(name, kind, number, width, level)
                width = self.channels[level]
                skips.append(width)
            if level < len(self.channels) - 1:
                self.made.conv(f"{name}.downsamplers.0.conv", width, width, self.areas[level + 1])
                skips.append(width)
        return skips

    def _up(self, skips: list[int]) -> None:
        width, top = self.channels[-1], len(self.channels) - 1
        for place, kind in enumerate(self.config["up_block_types"]):
            name, level = f"up_blocks.{place}", top - place
            for number in range(self.depth[level] + 1):
                self._layer(name, kind, number, width + skips.pop(), level)
                width = self.channels[level]
            if level > 0:
                self.made.conv(f"{name}.upsamplers.0.conv", width, width, self.areas[level - 1])
        self.made.norm("conv_norm_out", width)
        self.made.conv("conv_out", width, self.config["out_channels"], self.areas[0])

    def _layer(self, name: str, kind: str, number: int, before: int, level: int) -> None:
        """A residual block, and its attention where it has some."""
        self._residual(f"{name}.resnets.{number}", before, level)
        if "CrossAttn" in kind:
            self._attention(f"{name}.attentions.{number}", level)

    def _residual(self, name: str, before: int, level: int) -> None:
        self.made.begin()
        residual(self.made, name, before, self.channels[level], self.areas[level], time=self.time)
        self.made.end(before * self.areas[level])

    def _attention(self, name: str, level: int) -> None:
        """Projections in and out, and blocks of self-attention, attention to the text, and a gated feed-forward."""
        made, width, area = self.made, self.channels[level], self.areas[level]
        made.norm(f"{name}.norm", width)
        for part in ("proj_in", "proj_out"):
            if self.config.get("use_linear_projection"):
                made.linear(f"{name}.{part}", width, width, area)
            else:
                made.conv(f"{name}.{part}", width, width, area, (1, 1))
        for number in range(self.blocks[level]):
            self._block(f"{name}.transformer_blocks.{number}", width, area)

    def _block(self, name: str, width: int, area: int) -> None:
        made, context = self.made, self.config["cross_attention_dim"]
        made.begin()
        for attention, before, rows in (("attn1", width, area), ("attn2", context, self.text)):
            made.linear(f"{name}.{attention}.to_q", width, width, area, bias=False)
            for part in ("to_k", "to_v"):
                made.linear(f"{name}.{attention}.{part}", before, width, rows, bias=False)
            made.linear(f"{name}.{attention}.to_out.0", width, width, area)
            made.attention(area, rows, width)
        for number in (1, 2, 3):
            made.norm(f"{name}.norm{number}", width)
        made.linear(f"{name}.ff.net.0.proj", width, 8 * width, area)
        made.linear(f"{name}.ff.net.2", 4 * width, width, area)
        made.end(width * area)


def residual(made: Counted, name: str, before: int, after: int, area: float, *, time: int = 0) -> None:
    """Two convolutions, the step's embedding, and a shortcut where the width changes."""
    made.norm(f"{name}.norm1", before)
    made.conv(f"{name}.conv1", before, after, area)
    if time:
        made.linear(f"{name}.time_emb_proj", time, after)
    made.norm(f"{name}.norm2", after)
    made.conv(f"{name}.conv2", after, after, area)
    if before != after:
        made.conv(f"{name}.conv_shortcut", before, after, area, (1, 1))


def known(config: Mapping[str, Any], keys: Sequence[str], blocks: set[str]) -> None:
    """ValueError if a block is another one."""
    others = {block for key in keys for block in config[key]} - blocks
    if others:
        raise ValueError(f"nothing is known of the work of {', '.join(sorted(others))}")


def _areas(height: int, width: int, levels: int) -> list[int]:
    """Pixels of each level's maps: a convolution of stride 2 rounds up."""
    areas = []
    for _ in range(levels):
        areas.append(height * width)
        height, width = (height + 1) // 2, (width + 1) // 2
    return areas


def _each(value: int | Sequence[int], levels: int) -> list[int]:
    return [value] * levels if isinstance(value, int) else list(value)
