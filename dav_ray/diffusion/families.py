"""The model families by `model.kind`: a new one is a case in each function here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dav_ray.config import Config
from dav_ray.diffusion.base import Diffusion
from dav_ray.model_folder import model_path

if TYPE_CHECKING:
    from dav_ray.diffusion.masked import MaskedDiffusion


def build(
    config: Config, *, device: str = "cpu", autocast: str = "float32", micro_batch: int | None = None
) -> Diffusion:
    """The model of a configuration with its policy, pretrained so far. UserError if its files do not fit."""
    model, search, lora = config.model, config.search, config.mstep.lora
    options: dict[str, Any] = {
        **_sampling(config),
        "micro_batch": micro_batch or search.micro_batch,
        "device": device,
        "autocast": autocast,
    }
    if model.kind == "masked":
        diffusion = _masked(config, **options)
    else:
        from dav_ray.device import quiet
        from dav_ray.diffusion.stable_diffusion import Parts, StableDiffusion

        quiet()
        files = {"dtype": model.dtype, "variant": model.variant, "revision": model.revision}
        parts = Parts.load(model_path(model.path), draft_vae=model.draft_vae, **files)
        options |= {"channels_last": model.channels_last, "draft_above": model.draft_above}
        diffusion = StableDiffusion(parts, eta=search.eta, decode_batch=search.decode_batch, **options)
    if config.mstep.parameters == "lora":
        diffusion.add_adapters(lora.rank, lora.alpha, config.lora_targets, config.seed)
    else:
        diffusion.train_all_weights()
    return diffusion


def for_search(config: Config, *, device: str = "cpu") -> Diffusion:
    """The model as a search worker has it."""
    import torch

    diffusion = build(config, device=device, autocast=config.search.precision)
    if config.search.compile:
        diffusion.parallelise(torch.compile)
    return diffusion


def pretrained(config: Config) -> Any:
    """What users sample from, before any alignment: a `StableDiffusionPipeline`, or a `MaskedDiffusion`."""
    model = config.model
    if model.kind == "masked":
        return _masked(config, **_sampling(config))
    from dav_ray.diffusion.stable_diffusion_files import load_pipeline

    return load_pipeline(model_path(model.path), dtype=model.dtype, variant=model.variant, revision=model.revision)


def aligned(config: Config, folder: Path) -> Any:
    """The same with the policy that lies in `folder`."""
    if config.model.kind == "masked":
        from dav_ray.diffusion.masked import MaskedDiffusion

        return MaskedDiffusion.from_checkpoint(folder, alphabet=config.model.alphabet, **_sampling(config))
    from dav_ray.diffusion.stable_diffusion_files import attach

    pipe = pretrained(config)
    attach(pipe, folder, lora=config.mstep.parameters == "lora")
    return pipe


def _masked(config: Config, **options: Any) -> MaskedDiffusion:
    from dav_ray.diffusion.masked import MaskedDiffusion

    model = config.model
    return MaskedDiffusion.from_checkpoint(
        model_path(model.path), model.weights, alphabet=model.alphabet, length=model.length, **options
    )


def _sampling(config: Config) -> dict[str, Any]:
    return {"steps": config.search.steps, "guidance_scale": config.search.guidance_scale}
