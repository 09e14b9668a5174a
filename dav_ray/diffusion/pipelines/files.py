"""Files of Stable Diffusion: the pipeline as it is loaded, and the policy as `StableDiffusionPipeline` takes it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from dav_ray.diffusion.device import DTYPES
from dav_ray.diffusion.pipelines.hub import is_hub_id, is_offline, not_from_the_hub
from dav_ray.diffusion.pipelines.one_download import downloaded
from dav_ray.diffusion.pipelines.schedulers import mistakes
from dav_ray.diffusion.weight_files import sorted_header
from dav_ray.errors import UserError

LORA = "pytorch_lora_weights.safetensors"
UNET = "unet/diffusion_pytorch_model.safetensors"
DRAFT_FILES = ["config.json", "*.safetensors"]


def load_pipeline(path: str, *, dtype: str = "float32", variant: str | None = None, revision: str | None = None) -> Any:
    """A `StableDiffusionPipeline` that samples by DDIM, whatever scheduler it came with. Schedulers that know no
    `clip_sample` do not clip; DDIM's own default would. UserError where it can't be loaded, or its scheduler can't be
    turned into DDIM."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    # never a pickle
    options: dict[str, Any] = {"variant": variant, "safety_checker": None}

    def download(local_files_only: bool) -> str:
        there = StableDiffusionPipeline.download(
            path, revision=revision, local_files_only=local_files_only, use_safetensors=True, **options
        )
        return str(there)

    try:
        there = downloaded(path, revision, download) if is_hub_id(path) else path
        pipe: Any = StableDiffusionPipeline.from_pretrained(
            there, dtype=DTYPES[dtype], requires_safety_checker=False, use_safetensors=True, **options
        )
    except (OSError, ValueError) as error:  # what the hub's and diffusers' loaders raise; the words are theirs
        raise UserError(_not_loaded(path, error)) from error
    found = [f"model.path = {path}: can't be searched: {line}" for line in mistakes(_config(pipe.scheduler))]
    if found:
        raise UserError(found)
    pipe.register_to_config(_name_or_path=path)  # not the cache's folder
    known = "clip_sample" in pipe.scheduler.config
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **({} if known else {"clip_sample": False}))
    return pipe


def _config(scheduler: Any) -> dict[str, Any]:
    """What its scheduler_config.json would say."""
    return {**scheduler.config, "_class_name": type(scheduler).__name__}


def _not_loaded(path: str, error: Exception) -> str:
    """The line about a pipeline that can't be loaded."""
    why = str(error).strip().partition("\n")[0] or type(error).__name__
    if os.path.isdir(path):
        return f"model.path = {path}: can't be loaded: {why}"
    if not is_hub_id(path):
        return f"model.path = {path}: no such folder; allowed: a folder that every node sees, or a hub id (org/name)"
    return not_from_the_hub(path, "offline, and not downloaded before" if is_offline() else why)


def load_draft_vae(path: str, vae: Any, dtype: str = "float32") -> Any:
    """An `AutoencoderTiny` for the latents and images of `vae`. UserError where its shapes are others."""
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    def download(local_files_only: bool) -> str:
        from huggingface_hub import snapshot_download

        return snapshot_download(path, allow_patterns=DRAFT_FILES, local_files_only=local_files_only)

    there = downloaded(path, None, download) if is_hub_id(path) else path
    draft: Any = AutoencoderTiny.from_pretrained(there, dtype=DTYPES[dtype], use_safetensors=True)
    sizes = [(m.config.latent_channels, m.config.out_channels, _enlarges(m)) for m in (draft, vae)]
    if sizes[0] != sizes[1]:
        words = ["{} latent channels, {} colours, {} times the size".format(*size) for size in sizes]
        raise UserError(f"model.draft_vae = {path}: has {words[0]}; allowed: {words[1]}, as the pipeline's VAE")
    return draft


def _enlarges(vae: Any) -> int:
    """By how much an image is larger than its latents."""
    levels = getattr(vae.config, "num_decoder_blocks", None) or vae.config.block_out_channels
    return 2 ** (len(levels) - 1)


def save_lora(folder: Path, unet: Any, state: dict[str, torch.Tensor]) -> None:
    """The adapters, for `load_lora_weights`. The same adapters are the same bytes."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    layers: dict[str, torch.nn.Module | torch.Tensor] = dict(state)
    StableDiffusionPipeline.save_lora_weights(
        str(folder), unet_lora_layers=layers, unet_lora_adapter_metadata=_metadata(unet)
    )
    file = folder / LORA
    file.write_bytes(sorted_header(file.read_bytes()))


def attach(pipe: Any, folder: Path, *, lora: bool) -> None:
    """Put a stored policy into a pipeline."""
    if lora:
        # the UNet's alone: `load_lora_weights` looks for the text encoder's too, and says that there are none
        state, alphas, metadata = pipe.lora_state_dict(
            str(folder), weight_name=LORA, use_safetensors=True, return_lora_metadata=True
        )
        pipe.load_lora_into_unet(state, network_alphas=alphas, unet=pipe.unet, metadata=metadata, _pipeline=pipe)
    else:
        pipe.unet = type(pipe.unet).from_pretrained(folder / "unet", use_safetensors=True)


def _metadata(unet: Any) -> dict[str, Any]:
    """The adapters' configuration, without which a scale alpha / rank != 1 is lost. Sets, which have no order, sorted:
    the same policy is the same file."""
    config = unet.peft_config["default"].to_dict()
    return {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
