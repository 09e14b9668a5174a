"""SanaTransformer2DModel: linear attention, attention to the text, and a gated feed-forward of convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dav_ray.config.networks.counted import Counted, Inputs
from dav_ray.config.networks.joint import TIME, embedded


def sana(config: Mapping[str, Any], at: Inputs) -> Counted:
    made, patch = Counted(), config["patch_size"]
    width = config["num_attention_heads"] * config["attention_head_dim"]
    height, across = at.height // patch, at.width // patch
    image, out = height * across, config.get("out_channels") or config["in_channels"]
    made.tensor("scale_shift_table", 2, width)
    made.conv("patch_embed.proj", config["in_channels"], width, image, (patch, patch))
    if config.get("interpolation_scale") is not None:
        made.tensor("patch_embed.pos_embed", 1, (config["sample_size"] // patch) ** 2, width)
    embedder = "time_embed" if config.get("guidance_embeds") else "time_embed.emb"
    embedded(made, f"{embedder}.timestep_embedder", TIME, width)
    if config.get("guidance_embeds"):
        embedded(made, "time_embed.guidance_embedder", TIME, width)
    made.linear("time_embed.linear", width, 6 * width)
    made.linear("caption_projection.linear_1", config["caption_channels"], width, at.text)
    made.linear("caption_projection.linear_2", width, width, at.text)
    made.norm("caption_norm", width, bias=False)
    for number in range(config["num_layers"]):
        _block(made, f"transformer_blocks.{number}", config, image, at.text)
    made.linear("proj_out", width, patch * patch * out, image)
    return made


def _block(made: Counted, name: str, config: Mapping[str, Any], image: int, text: int) -> None:
    heads, depth = config["num_attention_heads"], config["attention_head_dim"]
    width, bias, normed = heads * depth, config.get("attention_bias", False), config.get("qk_norm") is not None
    across = config["num_cross_attention_heads"] * config["cross_attention_head_dim"]
    inside = int(config["mlp_ratio"] * width)
    made.begin()
    made.tensor(f"{name}.scale_shift_table", 6, width)
    for part in ("to_q", "to_k", "to_v"):
        made.linear(f"{name}.attn1.{part}", width, width, image, bias=bias)
    made.linear(f"{name}.attn1.to_out.0", width, width, image)
    made.flops += 4.0 * heads * depth * (depth + 1) * image  # a row more keeps the sum of the weights
    made.linear(f"{name}.attn2.to_q", width, across, image)
    for part in ("to_k", "to_v"):
        made.linear(f"{name}.attn2.{part}", config["cross_attention_dim"], across, text)
    made.linear(f"{name}.attn2.to_out.0", across, width, image)
    made.attention(image, text, across)
    for attention, size in (("attn1", width), ("attn2", across)) if normed else ():
        for part in ("norm_q", "norm_k"):
            made.norm(f"{name}.{attention}.{part}", size, bias=False)
    made.conv(f"{name}.ff.conv_inverted", width, 2 * inside, image, (1, 1))
    made.conv(f"{name}.ff.conv_depth", 2 * inside, 2 * inside, image, groups=2 * inside)
    made.conv(f"{name}.ff.conv_point", inside, width, image, (1, 1), bias=False)
    made.end(image * width)
