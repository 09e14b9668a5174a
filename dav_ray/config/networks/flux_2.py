"""Flux2Transformer2DModel: modulation is shared by all blocks, feed-forwards are gated, no layer has a bias."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dav_ray.config.networks.counted import Counted, Inputs
from dav_ray.config.networks.joint import embedded


def flux_2(config: Mapping[str, Any], at: Inputs) -> Counted:
    """Over latents packed 2 x 2."""
    made = Counted()
    depth = config["attention_head_dim"]
    width, image = config["num_attention_heads"] * depth, (at.height // 2) * (at.width // 2)
    inside, told = int(width * config.get("mlp_ratio", 3.0)), config.get("timestep_guidance_channels", 256)
    names = ["timestep_embedder", *(["guidance_embedder"] if config.get("guidance_embeds", True) else [])]
    for name in names:
        embedded(made, f"time_guidance_embed.{name}", told, width, bias=False)
    for name, number in (("double_stream_modulation_img", 6), ("double_stream_modulation_txt", 6)):
        made.linear(f"{name}.linear", width, number * width, bias=False)
    made.linear("single_stream_modulation.linear", width, 3 * width, bias=False)
    made.linear("x_embedder", config["in_channels"], width, image, bias=False)
    made.linear("context_embedder", config["joint_attention_dim"], width, at.text, bias=False)
    for number in range(config["num_layers"]):
        _two_streams(made, f"transformer_blocks.{number}", (width, inside, depth), image, at.text)
    for number in range(config["num_single_layers"]):
        _one_stream(made, f"single_transformer_blocks.{number}", (width, inside, depth), image + at.text)
    made.linear("norm_out.linear", width, 2 * width, bias=False)
    made.linear("proj_out", width, config.get("out_channels") or config["in_channels"], image, bias=False)
    return made


def _two_streams(made: Counted, name: str, sizes: tuple[int, int, int], image: int, text: int) -> None:
    """sizes: width, width inside the feed-forward, depth of a head."""
    width, inside, depth = sizes
    made.begin()
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        made.linear(f"{name}.attn.{part}", width, width, image, bias=False)
    for part in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
        made.linear(f"{name}.attn.{part}", width, width, text, bias=False)
    for part in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
        made.norm(f"{name}.attn.{part}", depth, bias=False)
    made.attention(image + text, image + text, width)
    for part, tokens in (("ff", image), ("ff_context", text)):
        made.linear(f"{name}.{part}.linear_in", width, 2 * inside, tokens, bias=False)
        made.linear(f"{name}.{part}.linear_out", inside, width, tokens, bias=False)
    made.end((image + text) * width)


def _one_stream(made: Counted, name: str, sizes: tuple[int, int, int], tokens: int) -> None:
    """Attention and feed-forward side by side, with one layer before and one after both."""
    width, inside, depth = sizes
    made.begin()
    made.linear(f"{name}.attn.to_qkv_mlp_proj", width, 3 * width + 2 * inside, tokens, bias=False)
    for part in ("norm_q", "norm_k"):
        made.norm(f"{name}.attn.{part}", depth, bias=False)
    made.attention(tokens, tokens, width)
    made.linear(f"{name}.attn.to_out", width + inside, width, tokens, bias=False)
    made.end(tokens * width)
