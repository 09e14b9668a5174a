"""Transformers that refine image and text apart and then read both as one sequence: Lumina-Image 2.0, Z-Image."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

from dav_ray.config.networks.counted import Counted, Inputs

TIME = 256
Z_TOKENS = 32  # Z-Image fills up image and text to a multiple of so many tokens
Z_TIME = 1024


def lumina_2(config: Mapping[str, Any], at: Inputs) -> Counted:
    """Lumina2Transformer2DModel."""
    made, width, patch = Counted(), config["hidden_size"], config["patch_size"]
    image, told, channels = (at.height // patch) * (at.width // patch), min(width, 1024), config["in_channels"]
    caption = config["cap_feat_dim"]
    made.linear("x_embedder", patch * patch * channels, width, image)
    made.linear("time_caption_embed.timestep_embedder.linear_1", TIME, told)
    made.linear("time_caption_embed.timestep_embedder.linear_2", told, told)
    made.norm("time_caption_embed.caption_embedder.0", caption, bias=False)
    made.linear("time_caption_embed.caption_embedder.1", caption, width, at.text)
    for number in range(config["num_refiner_layers"]):
        _lumina_block(made, f"noise_refiner.{number}", config, image, refines=True)
        _lumina_block(made, f"context_refiner.{number}", config, at.text, refines=True, modulated=False)
    for number in range(config["num_layers"]):
        _lumina_block(made, f"layers.{number}", config, image + at.text)
    made.linear("norm_out.linear_1", told, width)
    out = config.get("out_channels") or channels
    made.linear("norm_out.linear_2", width, patch * patch * out, image + at.text)
    return made


def _lumina_block(
    made: Counted, name: str, config: Mapping[str, Any], tokens: int, *, refines: bool = False, modulated: bool = True
) -> None:
    """refines: it is one of those that are never checkpointed."""
    width, heads, few = config["hidden_size"], config["num_attention_heads"], config["num_kv_heads"]
    depth, multiple = width // heads, config.get("multiple_of", 256)
    inside = multiple * ceil(int(4 * width * (config.get("ffn_dim_multiplier") or 1)) / multiple)
    made.begin()
    for part, after in (("to_q", width), ("to_k", few * depth), ("to_v", few * depth), ("to_out.0", width)):
        made.linear(f"{name}.attn.{part}", width, after, tokens, bias=False)
    for part in ("norm_q", "norm_k"):
        made.norm(f"{name}.attn.{part}", depth, bias=False)
    made.attention(tokens, tokens, width)
    for part, before, after in (("1", width, inside), ("3", width, inside), ("2", inside, width)):
        made.linear(f"{name}.feed_forward.linear_{part}", before, after, tokens, bias=False)
    if modulated:
        made.linear(f"{name}.norm1.linear", min(width, 1024), 4 * width)
    for part in ("norm1.norm" if modulated else "norm1", "ffn_norm1", "norm2", "ffn_norm2"):
        made.norm(f"{name}.{part}", width, bias=False)
    made.end(0 if refines else tokens * width)


def z_image(config: Mapping[str, Any], at: Inputs) -> Counted:
    """ZImageTransformer2DModel, with one size of patches."""
    made, width = Counted(), config["dim"]
    (patch,), (frames,) = config["all_patch_size"], config["all_f_patch_size"]
    image = _filled((at.height // patch) * (at.width // patch), Z_TOKENS)
    text, told, size = _filled(at.text, Z_TOKENS), min(width, TIME), f"{patch}-{frames}"
    values = frames * patch * patch * config["in_channels"]
    made.tensor("x_pad_token", 1, width)
    made.tensor("cap_pad_token", 1, width)
    made.linear(f"all_x_embedder.{size}", values, width, image)
    made.linear("t_embedder.mlp.0", TIME, Z_TIME)
    made.linear("t_embedder.mlp.2", Z_TIME, told)
    made.norm("cap_embedder.0", config["cap_feat_dim"], bias=False)
    made.linear("cap_embedder.1", config["cap_feat_dim"], width, text)
    for number in range(config["n_refiner_layers"]):
        _z_block(made, f"noise_refiner.{number}", config, image)
        _z_block(made, f"context_refiner.{number}", config, text, modulated=False)
    for number in range(config["n_layers"]):
        _z_block(made, f"layers.{number}", config, image + text)
    made.linear(f"all_final_layer.{size}.adaLN_modulation.1", told, width)
    made.linear(f"all_final_layer.{size}.linear", width, values, image + text)
    return made


def _z_block(made: Counted, name: str, config: Mapping[str, Any], tokens: int, *, modulated: bool = True) -> None:
    width, heads, few = config["dim"], config["n_heads"], config["n_kv_heads"]
    depth, inside = width // heads, int(width / 3 * 8)
    made.begin()
    for part, after in (("to_q", width), ("to_k", few * depth), ("to_v", few * depth), ("to_out.0", width)):
        made.linear(f"{name}.attention.{part}", width, after, tokens, bias=False)
    for part in ("norm_q", "norm_k") if config.get("qk_norm", True) else ():
        made.norm(f"{name}.attention.{part}", depth, bias=False)
    made.attention(tokens, tokens, width)
    for part, before, after in (("w1", width, inside), ("w3", width, inside), ("w2", inside, width)):
        made.linear(f"{name}.feed_forward.{part}", before, after, tokens, bias=False)
    for part in ("attention_norm1", "ffn_norm1", "attention_norm2", "ffn_norm2"):
        made.norm(f"{name}.{part}", width, bias=False)
    if modulated:
        made.linear(f"{name}.adaLN_modulation.0", min(width, TIME), 4 * width)
    made.end(tokens * width)


def _filled(tokens: int, multiple: int) -> int:
    return multiple * ceil(tokens / multiple)
