"""Files of diffusers pipelines: the pipeline as it is loaded, and the policy as the pipeline takes it."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from dav_ray.diffusion.device import DTYPES
from dav_ray.diffusion.pipelines.hub import INDEX, is_hub_id, is_offline, not_from_the_hub
from dav_ray.diffusion.pipelines.one_download import downloaded
from dav_ray.diffusion.pipelines.schedulers import CONVERTIBLE, FLOWS, mistakes
from dav_ray.diffusion.weight_files import sorted_header
from dav_ray.errors import UserError

LORA = "pytorch_lora_weights.safetensors"
WEIGHTS = "diffusion_pytorch_model.safetensors"
DRAFT_FILES = ["config.json", "*.safetensors"]


def load_pipeline(
    path: str,
    pipeline: str = "StableDiffusionPipeline",
    schedulers: Collection[str] = CONVERTIBLE,
    *,
    dtype: str = "float32",
    variant: str | None = None,
    revision: str | None = None,
) -> Any:
    """A pipeline of this class of diffusers. One whose scheduler has a table of alpha_bar samples by DDIM, whatever
    scheduler it came with, and a flow's solver gives way to Euler's. schedulers: the classes that it may have.
    UserError where it can't be loaded, or nobody can draw its scheduler's steps."""
    import diffusers

    cls = getattr(diffusers, pipeline)
    # never a pickle
    options: dict[str, Any] = {"variant": variant}
    checked: dict[str, Any] = {}
    if "safety_checker" in cls._optional_components:
        options["safety_checker"], checked["requires_safety_checker"] = None, False

    def download(local_files_only: bool) -> str:
        there = cls.download(
            path, revision=revision, local_files_only=local_files_only, use_safetensors=True, **options
        )
        return str(there)

    try:
        there = downloaded(path, revision, download) if is_hub_id(path) else path
        words = {**_left_out(cls, Path(there)), **checked, **options}
        pipe: Any = cls.from_pretrained(there, dtype=DTYPES[dtype], use_safetensors=True, **words)
    except (OSError, ValueError) as error:  # what the hub's and diffusers' loaders raise; the words are theirs
        raise UserError(_not_loaded(path, error)) from error
    found = [
        f"model.path = {path}: can't be searched: {line}" for line in mistakes(_config(pipe.scheduler), schedulers)
    ]
    if found:
        raise UserError(found)
    pipe.register_to_config(_name_or_path=path)  # not the cache's folder
    if type(pipe.scheduler).__name__ in CONVERTIBLE:
        pipe.scheduler = (as_ddim if FLOWS.isdisjoint(schedulers) else as_flow)(pipe.scheduler)
    return pipe


def _left_out(cls: Any, folder: Path) -> dict[str, None]:
    """The pipeline's parts that its files leave out, for instance T5: diffusers wants to be told so of some."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # diffusers finds the words
    parts, _ = cls._get_signature_keys(cls)
    return {name: None for name in sorted(parts) if index.get(name) in (None, [None, None])}


def as_ddim(scheduler: Any) -> Any:
    """A `DDIMScheduler` with this one's table. Schedulers that know no `clip_sample` do not clip; DDIM's own default
    would."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    known = "clip_sample" in scheduler.config
    return DDIMScheduler.from_config(scheduler.config, **({} if known else {"clip_sample": False}))


def as_flow(scheduler: Any) -> Any:
    """A `FlowMatchEulerDiscreteScheduler` with the shift of a solver that has flow sigmas."""
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    config = scheduler.config
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=config.num_train_timesteps, shift=config.flow_shift)


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


def save_lora(folder: Path, pipeline: str, component: str, network: Any, state: dict[str, torch.Tensor]) -> None:
    """The adapters of a pipeline's network, for `load_lora_weights`. pipeline: its class; component: the network's name
    in it. The same adapters are the same bytes."""
    import diffusers

    words = {f"{component}_lora_layers": dict(state), f"{component}_lora_adapter_metadata": _metadata(network)}
    getattr(diffusers, pipeline).save_lora_weights(str(folder), **words)
    file = folder / LORA
    file.write_bytes(sorted_header(file.read_bytes()))


def attach(pipe: Any, folder: Path, *, lora: bool, component: str = "unet") -> None:
    """Put a stored policy into a pipeline. component: the name of the network that was trained."""
    if not lora:
        network = type(getattr(pipe, component)).from_pretrained(folder / component, use_safetensors=True)
        setattr(pipe, component, network)
    elif component != "unet":
        pipe.load_lora_weights(str(folder), weight_name=LORA, use_safetensors=True)
    else:
        # the UNet's alone: `load_lora_weights` looks for the text encoder's too, and says that there are none
        state, alphas, metadata = pipe.lora_state_dict(
            str(folder), weight_name=LORA, use_safetensors=True, return_lora_metadata=True
        )
        pipe.load_lora_into_unet(state, network_alphas=alphas, unet=pipe.unet, metadata=metadata, _pipeline=pipe)


def _metadata(network: Any) -> dict[str, Any]:
    """The adapters' configuration, without which a scale alpha / rank != 1 is lost. Sets, which have no order, sorted:
    the same policy is the same file."""
    config = network.peft_config["default"].to_dict()
    return {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
