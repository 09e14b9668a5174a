"""Transformers with weights for image and text that attend to each other: SD 3, FLUX.1, Qwen-Image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dav_ray.config.networks.counted import Counted, Inputs

TIME = 256  # width of the sines that a step is told by


def sd3(config: Mapping[str, Any], at: Inputs) -> Counted:
    """SD3Transformer2DModel: pooled text and step modulate every block; the first blocks of 3.5 medium have a second
    attention of the image alone."""
    made, patch = Counted(), config["patch_size"]
    heads, depth, layers = config["num_attention_heads"], config["attention_head_dim"], config["num_layers"]
    width, image = heads * depth, (at.height // patch) * (at.width // patch)
    dual, normed = config.get("dual_attention_layers") or (), config.get("qk_norm") is not None
    made.conv("pos_embed.proj", config["in_channels"], width, image, (patch, patch))
    made.tensor("pos_embed.pos_embed", 1, config["pos_embed_max_size"] ** 2, width)
    embedded(made, "time_text_embed.timestep_embedder", TIME, width)
    embedded(made, "time_text_embed.text_embedder", config["pooled_projection_dim"], width)
    made.linear("context_embedder", config["joint_attention_dim"], config["caption_projection_dim"], at.text)
    for number in range(layers):
        name, last, two = f"transformer_blocks.{number}", number == layers - 1, number in dual
        made.begin()
        made.linear(f"{name}.norm1.linear", width, (9 if two else 6) * width)
        made.linear(f"{name}.norm1_context.linear", width, (2 if last else 6) * width)
        _joint_attention(made, f"{name}.attn", width, (image, at.text), depth if normed else 0, ends=last)
        if two:
            _attention(made, f"{name}.attn2", width, image, depth if normed else 0)
        _forward(made, f"{name}.ff", width, image)
        if not last:
            _forward(made, f"{name}.ff_context", width, at.text)
        made.end((image + at.text) * width)
    made.linear("norm_out.linear", width, 2 * width)
    made.linear("proj_out", width, patch * patch * config["out_channels"], image)
    return made


def flux(config: Mapping[str, Any], at: Inputs) -> Counted:
    """FluxTransformer2DModel: blocks of two streams, then blocks of one, over latents packed 2 x 2."""
    made = Counted()
    heads, depth = config["num_attention_heads"], config["attention_head_dim"]
    width, image = heads * depth, (at.height // 2) * (at.width // 2)
    told = ["timestep_embedder", *(["guidance_embedder"] if config.get("guidance_embeds") else [])]
    for name in told:
        embedded(made, f"time_text_embed.{name}", TIME, width)
    embedded(made, "time_text_embed.text_embedder", config["pooled_projection_dim"], width)
    made.linear("context_embedder", config["joint_attention_dim"], width, at.text)
    made.linear("x_embedder", config["in_channels"], width, image)
    for number in range(config["num_layers"]):
        name = f"transformer_blocks.{number}"
        made.begin()
        made.linear(f"{name}.norm1.linear", width, 6 * width)
        made.linear(f"{name}.norm1_context.linear", width, 6 * width)
        _joint_attention(made, f"{name}.attn", width, (image, at.text), depth)
        _forward(made, f"{name}.ff", width, image)
        _forward(made, f"{name}.ff_context", width, at.text)
        made.end((image + at.text) * width)
    tokens = image + at.text
    for number in range(config["num_single_layers"]):
        name = f"single_transformer_blocks.{number}"
        made.begin()
        made.linear(f"{name}.norm.linear", width, 3 * width)
        made.linear(f"{name}.proj_mlp", width, 4 * width, tokens)
        _attention(made, f"{name}.attn", width, tokens, depth, ends=True)
        made.linear(f"{name}.proj_out", 5 * width, width, tokens)
        made.end(tokens * width)
    made.linear("norm_out.linear", width, 2 * width)
    made.linear("proj_out", width, config.get("out_channels") or config["in_channels"], image)
    return made


def qwen_image(config: Mapping[str, Any], at: Inputs) -> Counted:
    """QwenImageTransformer2DModel: blocks of two streams over latents packed 2 x 2."""
    made = Counted()
    heads, depth, patch = config["num_attention_heads"], config["attention_head_dim"], config["patch_size"]
    width, image = heads * depth, (at.height // 2) * (at.width // 2)
    embedded(made, "time_text_embed.timestep_embedder", TIME, width)
    made.norm("txt_norm", config["joint_attention_dim"], bias=False)
    made.linear("img_in", config["in_channels"], width, image)
    made.linear("txt_in", config["joint_attention_dim"], width, at.text)
    for number in range(config["num_layers"]):
        name = f"transformer_blocks.{number}"
        made.begin()
        for part, tokens in (("img", image), ("txt", at.text)):
            made.linear(f"{name}.{part}_mod.1", width, 6 * width)
            _forward(made, f"{name}.{part}_mlp", width, tokens)
        _joint_attention(made, f"{name}.attn", width, (image, at.text), depth)
        made.end((image + at.text) * width)
    made.linear("norm_out.linear", width, 2 * width)
    made.linear("proj_out", width, patch * patch * config["out_channels"], image)
    return made


def embedded(made: Counted, name: str, before: int, width: int, *, bias: bool = True) -> None:
    """Two linear layers on one vector."""
    made.linear(f"{name}.linear_1", before, width, bias=bias)
    made.linear(f"{name}.linear_2", width, width, bias=bias)


def _forward(made: Counted, name: str, width: int, tokens: float) -> None:
    made.linear(f"{name}.net.0.proj", width, 4 * width, tokens)
    made.linear(f"{name}.net.2", 4 * width, width, tokens)


def _attention(made: Counted, name: str, width: int, tokens: float, depth: int, *, ends: bool = False) -> None:
    """Of one stream. depth: of a head, where queries and keys are normalised, else 0; ends: no projection out."""
    for part in ("to_q", "to_k", "to_v", *([] if ends else ["to_out.0"])):
        made.linear(f"{name}.{part}", width, width, tokens)
    for part in ("norm_q", "norm_k") if depth else ():
        made.norm(f"{name}.{part}", depth, bias=False)
    made.attention(tokens, tokens, width)


def _joint_attention(
    made: Counted, name: str, width: int, tokens: tuple[int, int], depth: int, *, ends: bool = False
) -> None:
    """Of image and text together; ends: the text's stream ends here."""
    image, text = tokens
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        made.linear(f"{name}.{part}", width, width, image)
    for part in ("add_q_proj", "add_k_proj", "add_v_proj", *([] if ends else ["to_add_out"])):
        made.linear(f"{name}.{part}", width, width, text)
    for part in ("norm_q", "norm_k", "norm_added_q", "norm_added_k") if depth else ():
        made.norm(f"{name}.{part}", depth, bias=False)
    made.attention(image + text, image + text, width)
