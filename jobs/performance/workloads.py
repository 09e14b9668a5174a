"""What `jobs/benchmark.py` measures on: shipped recipes, and models with random weights whose network dominates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from dav_ray.config.build import for_search
from dav_ray.config.model_path import model_path
from dav_ray.config.partition import round_prompts
from dav_ray.config.recipe.load import load
from dav_ray.config.schema import Config
from dav_ray.diffusion.base import Diffusion
from dav_ray.rewards import registry
from dav_ray.rewards.base import Scorer, local_scorer
from dav_ray.types import Chunk

NAMES = ("digits", "images", "dna")
CUDA_NAMES = ("sd15",)


@dataclass(frozen=True)
class Workload:
    """A chunk of trajectories, the model that searches it, and its rewards in this process."""

    name: str
    config: Config
    diffusion: Diffusion
    scorer: Scorer
    chunk: Chunk
    device: str

    @property
    def batch(self) -> int:
        return len(self.chunk.conditions)


def workload(name: str, folder: Path, device: str, overrides: Sequence[str] = ()) -> Workload:
    """By name. folder: where models with random weights are saved, once."""
    config = configuration(name, folder, device, overrides)
    size = config.search.chunk
    prompts = tuple(round_prompts(config.prompts, 1, size, together=config.search.facts.together))
    chunk = Chunk(config.seed, 1, 0, 0, tuple(range(size)), prompts)
    rewards = [(r.label, r.weight, registry.build(r.kind, dict(r.args), device)) for r in config.reward]
    torch.set_num_threads(config.roles.search.threads)
    return Workload(name, config, for_search(config, device=device), local_scorer(rewards), chunk, device)


def configuration(name: str, folder: Path, device: str, overrides: Sequence[str] = ()) -> Config:
    overrides = [*(f"roles.{role}.replicas=1" for role in ("search", "reward", "train")), *overrides]
    if name == "digits":
        return load("digits", overrides).config
    if name == "images":
        words = [f"model.path={_saved(folder / 'images', _save_images)}", "search.steps=10", "search.chunk=8"]
        words += ["search.trajectories=8", "mstep.micro_batch=16", "mstep.lora.targets=[to_q,to_k,to_v,to_out.0]"]
        return load("digits", [*words, "evaluate.features=pixels", "evaluate.heldout=[]", *overrides]).config
    if name == "dna":
        words = [f"model.path={_saved(folder / 'dna', _save_dna)}", "search.steps=128", "search.candidates=10"]
        words += ["search.chunk=2", "search.trajectories=2", "search.micro_batch=32", "reward={kind: gc_content}"]
        return load("dna", [*words, "evaluate.heldout=[]", *overrides]).config
    half = "bfloat16" if device == "cuda" else "float32"
    words = [f"model.path={_saved(folder / 'sd15', _save_sd15)}", f"model.dtype={half}", f"mstep.precision={half}"]
    words += ["reward={kind: jpeg_compressibility}", "search.gradient=false", "search.candidates=16", "search.chunk=4"]
    return load("sd15", [*words, "evaluate.heldout=[]", *overrides]).config


def empty_recipe(folder: Path, rounds: int) -> Path:
    """A recipe of a tiny masked model with next to nothing to do."""
    settings = {
        "rounds": rounds,
        "model": {"kind": "masked", "path": str(_saved(folder / "model", _save_tiny))},
        "reward": {"kind": "gc_content"},
        "search": {"candidates": 1, "alpha": 0.1, "steps": 2, "trajectories": 1, "chunk": 1},
        "mstep": {"parameters": "full", "batch_size": 2},
        "evaluate": {"samples": 2, "batch": 2, "kl_samples": 0, "elbo_draws": 0},
        "roles": {name: {"replicas": 1, "cpus": 0.2} for name in ("search", "reward", "train")},
    }
    path = folder / "empty.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def _saved(folder: Path, save: Any) -> Path:
    if not folder.exists():
        torch.manual_seed(0)
        save(folder)
    return folder


def _save_images(folder: Path) -> None:
    """The digits pipeline with a UNet of 100 times its work, so that decoding and rewards are small beside it."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    pipe = StableDiffusionPipeline.from_pretrained(model_path("shipped:digits"), use_safetensors=True)
    pipe.unet = UNet2DConditionModel(
        **{**pipe.unet.config, "block_out_channels": (128, 256), "layers_per_block": 2, "attention_head_dim": 16}
    )
    pipe.save_pretrained(folder)


def _save_sd15(folder: Path) -> None:
    """Networks of the sizes of Stable Diffusion 1.5."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    pipe = StableDiffusionPipeline.from_pretrained(model_path("shipped:digits"), use_safetensors=True)
    pipe.unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    pipe.vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    length, words = pipe.tokenizer.model_max_length, len(pipe.tokenizer)
    pipe.text_encoder = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            vocab_size=words,
            max_position_embeddings=length,
            bos_token_id=pipe.tokenizer.bos_token_id,
            eos_token_id=pipe.tokenizer.eos_token_id,
            pad_token_id=pipe.tokenizer.pad_token_id,
        )
    )
    pipe.save_pretrained(folder)


def _save_dna(folder: Path) -> None:
    """The DNA benchmark's network: 200 letters, 128 channels, 20 dilated convolutions."""
    _save_masked(folder, 200, hidden=128, stacks=4, kernel=9)


def _save_tiny(folder: Path) -> None:
    _save_masked(folder, 24, hidden=8, stacks=1, kernel=5)


def _save_masked(folder: Path, length: int, **sizes: int) -> None:
    from dav_ray.diffusion.masked.alphabet import Alphabet
    from dav_ray.diffusion.masked.dilated_cnn import DilatedCNN
    from dav_ray.diffusion.masked.files import Settings, write

    write(folder, DilatedCNN(5, **sizes), Settings(Alphabet.of("dna"), length, 0, False))
