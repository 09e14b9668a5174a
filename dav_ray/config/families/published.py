"""Configurations of models on the hub that are often used, so that a plan needs no download. What decides about the
networks' tensors and work is here, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dav_ray.diffusion.pipelines.hub import INDEX

Parts = Mapping[str, dict[str, Any]]

TEXT_LENGTH = 77  # tokens of CLIP's text encoders

_UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
_VAE = {
    "_class_name": "AutoencoderKL",
    "latent_channels": 4,
    "out_channels": 3,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
_VAE_16 = {**_VAE, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
_VAE_FLUX_2 = {**_VAE, "_class_name": "AutoencoderKLFlux2", "latent_channels": 32, "patch_size": [2, 2]}
_VAE_DC = {
    "_class_name": "AutoencoderDC",
    "latent_channels": 32,
    "attention_head_dim": 32,
    **{f"{side}_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3 for side in ("encoder", "decoder")},
    **{f"{side}_block_out_channels": [128, 256, 512, 512, 1024, 1024] for side in ("encoder", "decoder")},
    "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
    "decoder_layers_per_block": [3] * 6,
    "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "upsample_block_type": "interpolate",
    "downsample_block_type": "Conv",
}
_VAE_QWEN = {
    "_class_name": "AutoencoderKLQwenImage",
    "base_dim": 96,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
}
_CLIP_L = {
    "architectures": ["CLIPTextModel"],
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "vocab_size": 49408,
    "max_position_embeddings": TEXT_LENGTH,
    "projection_dim": 768,
}
_CLIP_H = {**_CLIP_L, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23}
_CLIP_L_PROJECTED = {**_CLIP_L, "architectures": ["CLIPTextModelWithProjection"]}
_CLIP_G = {
    **_CLIP_L_PROJECTED,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
_T5 = {
    "architectures": ["T5EncoderModel"],
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "feed_forward_proj": "gated-gelu",
    "num_layers": 24,
    "num_heads": 64,
    "vocab_size": 32128,
}
_GEMMA_2 = {
    "architectures": ["Gemma2Model"],
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 256000,
}
_QWEN_3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
_QWEN_2_5_VL = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "vision_config": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584},
}
_SD3_5_MEDIUM = {
    "_class_name": "SD3Transformer2DModel",
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "dual_attention_layers": list(range(13)),
    "qk_norm": "rms_norm",
}
_SD3_5_LARGE = {
    **_SD3_5_MEDIUM,
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "pos_embed_max_size": 192,
    "dual_attention_layers": [],
}
_FLUX = {
    "_class_name": "FluxTransformer2DModel",
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
}
_FLUX_2_KLEIN = {
    "_class_name": "Flux2Transformer2DModel",
    "in_channels": 128,
    "num_layers": 5,
    "num_single_layers": 20,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "joint_attention_dim": 7680,
    "guidance_embeds": False,
}
_Z_IMAGE = {
    "_class_name": "ZImageTransformer2DModel",
    "all_patch_size": [2],
    "all_f_patch_size": [1],
    "in_channels": 16,
    "dim": 3840,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "qk_norm": True,
    "cap_feat_dim": 2560,
}
_LUMINA_2 = {
    "_class_name": "Lumina2Transformer2DModel",
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "hidden_size": 2304,
    "num_layers": 26,
    "num_refiner_layers": 2,
    "num_attention_heads": 24,
    "num_kv_heads": 8,
    "multiple_of": 256,
    "cap_feat_dim": 2304,
}
_SANA_1600M = {
    "_class_name": "SanaTransformer2DModel",
    "sample_size": 32,
    "patch_size": 1,
    "in_channels": 32,
    "out_channels": 32,
    "num_layers": 20,
    "num_attention_heads": 70,
    "attention_head_dim": 32,
    "num_cross_attention_heads": 20,
    "cross_attention_head_dim": 112,
    "cross_attention_dim": 2240,
    "caption_channels": 2304,
    "mlp_ratio": 2.5,
}
_SPRINT_1600M = {**_SANA_1600M, "guidance_embeds": True, "qk_norm": "rms_norm_across_heads"}
_SPRINT_600M = {
    **_SPRINT_1600M,
    "num_layers": 28,
    "num_attention_heads": 36,
    "num_cross_attention_heads": 16,
    "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
}
_QWEN_IMAGE = {
    "_class_name": "QwenImageTransformer2DModel",
    "patch_size": 2,
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 60,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "joint_attention_dim": 3584,
}
_UNET_XL = {
    **_UNET,
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "transformer_layers_per_block": [1, 2, 10],
    "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "projection_class_embeddings_input_dim": 2816,
}
_UNET_2 = {**_UNET, "cross_attention_dim": 1024, "use_linear_projection": True}

SD1: Parts = {"unet": {**_UNET, "cross_attention_dim": 768}, "vae": _VAE, "text_encoder": _CLIP_L}
SD2_BASE: Parts = {"unet": _UNET_2, "vae": _VAE, "text_encoder": _CLIP_H}
SD2: Parts = {**SD2_BASE, "unet": {**_UNET_2, "sample_size": 96}}
SDXL: Parts = {"unet": _UNET_XL, "vae": _VAE, "text_encoder": _CLIP_L, "text_encoder_2": _CLIP_G}
_LCM: Parts = {**SD1, "unet": {**SD1["unet"], "sample_size": 96, "time_cond_proj_dim": 256}}
_SD3_TEXT: Parts = {"text_encoder": _CLIP_L_PROJECTED, "text_encoder_2": _CLIP_G, "text_encoder_3": _T5}
_FLUX_REST: Parts = {"vae": _VAE_16, "text_encoder": _CLIP_L, "text_encoder_2": _T5}
_SANA_REST: Parts = {"vae": _VAE_DC, "text_encoder": _GEMMA_2}
_Z_IMAGE_PARTS: Parts = {"transformer": _Z_IMAGE, "vae": _VAE_16, "text_encoder": _QWEN_3}
_KLEIN: Parts = {"transformer": _FLUX_2_KLEIN, "vae": _VAE_FLUX_2, "text_encoder": _QWEN_3}

PUBLISHED: Mapping[str, Parts] = {
    "CompVis/stable-diffusion-v1-4": SD1,
    "runwayml/stable-diffusion-v1-5": SD1,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": SD1,
    "stabilityai/stable-diffusion-2-base": SD2_BASE,
    "stabilityai/stable-diffusion-2-1-base": SD2_BASE,
    "stabilityai/stable-diffusion-2": SD2,
    "stabilityai/stable-diffusion-2-1": SD2,
    "stabilityai/sd-turbo": SD2_BASE,
    "stabilityai/stable-diffusion-xl-base-1.0": SDXL,
    "stabilityai/sdxl-turbo": {**SDXL, "unet": {**_UNET_XL, "sample_size": 64}},
    "SimianLuo/LCM_Dreamshaper_v7": _LCM,
    "stabilityai/stable-diffusion-3.5-medium": {"transformer": _SD3_5_MEDIUM, "vae": _VAE_16, **_SD3_TEXT},
    "stabilityai/stable-diffusion-3.5-large": {"transformer": _SD3_5_LARGE, "vae": _VAE_16, **_SD3_TEXT},
    "black-forest-labs/FLUX.1-dev": {"transformer": {**_FLUX, "guidance_embeds": True}, **_FLUX_REST},
    "black-forest-labs/FLUX.1-schnell": {"transformer": {**_FLUX, "guidance_embeds": False}, **_FLUX_REST},
    "black-forest-labs/FLUX.2-klein-base-4B": _KLEIN,
    "black-forest-labs/FLUX.2-klein-4B": {**_KLEIN, INDEX: {"is_distilled": True}},
    "Tongyi-MAI/Z-Image": _Z_IMAGE_PARTS,
    "Tongyi-MAI/Z-Image-Turbo": _Z_IMAGE_PARTS,
    "Alpha-VLLM/Lumina-Image-2.0": {"transformer": _LUMINA_2, "vae": _VAE_16, "text_encoder": _GEMMA_2},
    "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers": {"transformer": _SANA_1600M, **_SANA_REST},
    "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers": {"transformer": _SPRINT_1600M, **_SANA_REST},
    "Efficient-Large-Model/Sana_Sprint_0.6B_1024px_diffusers": {"transformer": _SPRINT_600M, **_SANA_REST},
    "Qwen/Qwen-Image": {"transformer": _QWEN_IMAGE, "vae": _VAE_QWEN, "text_encoder": _QWEN_2_5_VL},
}


def published(hub_id: str, part: str) -> Mapping[str, Any]:
    """The configuration of a part of the model, or its index; empty where it is not one of these."""
    return PUBLISHED.get(hub_id, {}).get(part, {})
