"""A Stable Diffusion pipeline with random weights that is built in a tenth of a second: real classes, tiny sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch


def tiny_pipeline(folder: Path, *, sample_size: int = 4, seed: int = 0, **scheduler: Any) -> Any:
    """A StableDiffusionPipeline: latents 4 x sample_size^2, images 4 times as large. Scheduler options as in DDIM."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(seed)
    options = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        **scheduler,
    }
    unet = UNet2DConditionModel(
        sample_size=sample_size,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=4,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        sample_size=sample_size * 4,
        scaling_factor=1.0,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=514,
            max_position_embeddings=12,
            bos_token_id=512,
            eos_token_id=513,
            pad_token_id=513,
        )
    )
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=byte_level(folder, CLIPTokenizer),
        unet=unet,
        scheduler=DDIMScheduler(**options),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_tiny(folder: Path, **options: Any) -> str:
    tiny_pipeline(folder / "tokenizer-files", **options).save_pretrained(folder / "pipeline")
    return str(folder / "pipeline")


def byte_level(folder: Path, cls: Any) -> Any:
    """Byte-level: 256 characters, the same at a word's end, begin, end; no merges."""
    folder.mkdir(parents=True, exist_ok=True)
    characters = byte_characters()
    words = characters + [c + "</w>" for c in characters] + ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return cls(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=12)


def byte_characters() -> list[str]:
    """The 256 characters by which byte-level tokenizers write bytes."""
    visible = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
    return [chr(b) for b in visible] + [chr(256 + i) for i in range(256 - len(visible))]
