"""Pipelines with random weights, made on the device and saved once: of the sizes of Stable Diffusion 1.5, or tiny."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dav_ray.config.model_path import model_path

LENGTH = 77  # tokens of a text, as CLIP has them


@dataclass(frozen=True)
class Sizes:
    """Arguments of the networks' classes."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    length: int = LENGTH
    vision: dict[str, Any] = field(default_factory=dict)  # of a reward's network


SD15 = Sizes(
    unet={"sample_size": 64, "cross_attention_dim": 768},
    vae={
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "latent_channels": 4,
        "sample_size": 512,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    },
    text={"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    vision={  # ViT-L/14
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
    },
)
TINY = Sizes(
    unet={
        "sample_size": 4,
        "cross_attention_dim": 16,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    },
    vae={
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "latent_channels": 4,
        "sample_size": 8,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    },
    text={"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    length=16,
    vision={
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    },
)


def saved(folder: Path, sizes: Sizes, device: str, dtype: torch.dtype) -> Path:
    """The pipeline's folder; made where it is not there. Its tokenizer and scheduler are those of the digits."""
    if not (folder / "model_index.json").exists():
        torch.manual_seed(0)
        pipeline(sizes, device, dtype).save_pretrained(folder)
    return folder


def pipeline(sizes: Sizes, device: str, dtype: torch.dtype) -> Any:
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    pipe: Any = StableDiffusionPipeline.from_pretrained(model_path("shipped:digits"), use_safetensors=True)
    words = pipe.tokenizer
    words.model_max_length = sizes.length
    tokens = {name: getattr(words, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    with torch.device(device):
        pipe.unet = UNet2DConditionModel(**sizes.unet).to(dtype)
        pipe.vae = AutoencoderKL(**sizes.vae).to(dtype)
        text = CLIPTextConfig(**sizes.text, **tokens, vocab_size=len(words), max_position_embeddings=sizes.length)
        pipe.text_encoder = CLIPTextModel(text).to(dtype)
    return pipe
