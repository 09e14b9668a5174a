"""Text encoders of transformers: their tensors alone, as prompts are embedded once in a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dav_ray.config.networks.counted import Counted, Inputs


def clip(config: Mapping[str, Any], at: Inputs) -> Counted:
    """CLIPTextModel, and CLIPTextModelWithProjection."""
    made, width, inside = Counted(), config["hidden_size"], config["intermediate_size"]
    made.tensor("text_model.embeddings.token_embedding.weight", config["vocab_size"], width)
    made.tensor("text_model.embeddings.position_embedding.weight", config["max_position_embeddings"], width)
    for number in range(config["num_hidden_layers"]):
        name = f"text_model.encoder.layers.{number}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            made.linear(f"{name}.self_attn.{part}", width, width, 0)
        made.linear(f"{name}.mlp.fc1", width, inside, 0)
        made.linear(f"{name}.mlp.fc2", inside, width, 0)
        made.norm(f"{name}.layer_norm1", width)
        made.norm(f"{name}.layer_norm2", width)
    made.norm("text_model.final_layer_norm", width)
    if config.get("architectures", [""])[0].endswith("WithProjection"):
        made.linear("text_projection", width, config["projection_dim"], 0, bias=False)
    return made


def t5(config: Mapping[str, Any], at: Inputs) -> Counted:
    """T5EncoderModel with a gated feed-forward (v1.1). ValueError for another one."""
    if not str(config.get("feed_forward_proj")).startswith("gated"):
        raise ValueError("nothing is known of a T5 whose feed-forward is not gated")
    made, width, heads = Counted(), config["d_model"], config["num_heads"]
    inside = heads * config["d_kv"]
    made.tensor("shared.weight", config["vocab_size"], width)
    for number in range(config["num_layers"]):
        name = f"encoder.block.{number}.layer"
        for part in ("q", "k", "v"):
            made.linear(f"{name}.0.SelfAttention.{part}", width, inside, 0, bias=False)
        made.linear(f"{name}.0.SelfAttention.o", inside, width, 0, bias=False)
        if not number:
            buckets = config.get("relative_attention_num_buckets", 32)
            made.tensor(f"{name}.0.SelfAttention.relative_attention_bias.weight", buckets, heads)
        made.norm(f"{name}.0.layer_norm", width, bias=False)
        for part in ("wi_0", "wi_1"):
            made.linear(f"{name}.1.DenseReluDense.{part}", width, config["d_ff"], 0, bias=False)
        made.linear(f"{name}.1.DenseReluDense.wo", config["d_ff"], width, 0, bias=False)
        made.norm(f"{name}.1.layer_norm", width, bias=False)
    made.norm("encoder.final_layer_norm", width, bias=False)
    return made


def gemma_2(config: Mapping[str, Any], at: Inputs) -> Counted:
    """Gemma2Model."""
    made = Counted()
    norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
    _decoder_layers(made, "", config, [f"{name}_layernorm" for name in norms])
    return made


def qwen_3(config: Mapping[str, Any], at: Inputs) -> Counted:
    """Qwen3Model, or Qwen3ForCausalLM whose head is the embedding."""
    causal = config.get("architectures", [""])[0].endswith("ForCausalLM")
    prefix, made = "model." if causal else "", Counted()
    _decoder_layers(made, prefix, config, ["input_layernorm", "post_attention_layernorm"], headed=True)
    if causal and not config.get("tie_word_embeddings", False):
        made.linear("lm_head", config["hidden_size"], config["vocab_size"], 0, bias=False)
    return made


def qwen_2_5_vl(config: Mapping[str, Any], at: Inputs) -> Counted:
    """Qwen2_5_VLForConditionalGeneration, of which a text encoder uses the language model alone."""
    made, text = Counted(), {**config, **config.get("text_config", {})}
    seen = config["vision_config"]
    width, inside = seen["hidden_size"], seen["intermediate_size"]
    patch, frames, merged = seen.get("patch_size", 14), seen.get("temporal_patch_size", 2), 4 * width
    made.conv("model.visual.patch_embed.proj", seen.get("in_channels", 3), width, 0, (frames, patch, patch), bias=False)
    for number in range(seen["depth"]):
        name = f"model.visual.blocks.{number}"
        made.norm(f"{name}.norm1", width, bias=False)
        made.norm(f"{name}.norm2", width, bias=False)
        made.linear(f"{name}.attn.qkv", width, 3 * width, 0)
        made.linear(f"{name}.attn.proj", width, width, 0)
        for part, before, after in (("gate", width, inside), ("up", width, inside), ("down", inside, width)):
            made.linear(f"{name}.mlp.{part}_proj", before, after, 0)
    made.norm("model.visual.merger.ln_q", width, bias=False)
    made.linear("model.visual.merger.mlp.0", merged, merged, 0)
    made.linear("model.visual.merger.mlp.2", merged, seen["out_hidden_size"], 0)
    norms = ["input_layernorm", "post_attention_layernorm"]
    _decoder_layers(made, "model.language_model.", text, norms, biased=True)
    if not text.get("tie_word_embeddings", False):
        made.linear("lm_head", text["hidden_size"], text["vocab_size"], 0, bias=False)
    return made


def _decoder_layers(
    made: Counted,
    prefix: str,
    config: Mapping[str, Any],
    norms: list[str],
    *,
    headed: bool = False,
    biased: bool = False,
) -> None:
    """headed: each head's queries and keys are normalised; biased: they and the values have a bias."""
    width, inside, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    depth = config.get("head_dim") or width // heads
    few = config["num_key_value_heads"] * depth
    made.tensor(f"{prefix}embed_tokens.weight", config["vocab_size"], width)
    for number in range(config["num_hidden_layers"]):
        name = f"{prefix}layers.{number}"
        for part, after in (("q", heads * depth), ("k", few), ("v", few)):
            made.linear(f"{name}.self_attn.{part}_proj", width, after, 0, bias=biased)
        made.linear(f"{name}.self_attn.o_proj", heads * depth, width, 0, bias=False)
        for part in ("q_norm", "k_norm") if headed else ():
            made.norm(f"{name}.self_attn.{part}", depth, bias=False)
        for part, before, after in (("gate", width, inside), ("up", width, inside), ("down", inside, width)):
            made.linear(f"{name}.mlp.{part}_proj", before, after, 0, bias=False)
        for part in norms:
            made.norm(f"{name}.{part}", width, bias=False)
    made.norm(f"{prefix}norm", width, bias=False)
