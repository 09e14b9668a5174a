"""The model families by `model.kind`: a new one is a case in each function here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dav_ray.config import Config
from dav_ray.diffusion.base import Diffusion
from dav_ray.model_folder import model_path


def build(
    config: Config, *, device: str = "cpu", autocast: str = "float32", micro_batch: int | None = None
) -> Diffusion:
    """The model of a configuration with its policy, pretrained so far. UserError if its files do not fit."""
    path = model_path(config.model.path)
    options: dict[str, Any] = {"device": device, "autocast": autocast, "micro_batch": micro_batch}
    if config.model.kind == "masked":
        from dav_ray.diffusion.masked import MaskedDiffusion

        return MaskedDiffusion.build(config, path, **options)
    from dav_ray.diffusion.stable_diffusion import StableDiffusion

    return StableDiffusion.build(config, path, **options)


def pretrained(config: Config) -> Any:
    """What users sample from, before any alignment: a `StableDiffusionPipeline`, or a `MaskedDiffusion`."""
    model, path = config.model, model_path(config.model.path)
    if model.kind == "masked":
        from dav_ray.diffusion.masked import MaskedDiffusion

        return MaskedDiffusion.from_checkpoint(
            path, model.weights, alphabet=model.alphabet, length=model.length, **_sampling(config)
        )
    from dav_ray.diffusion.stable_diffusion_files import load_pipeline

    return load_pipeline(path, dtype=model.dtype, variant=model.variant, revision=model.revision)


def aligned(config: Config, folder: Path) -> Any:
    """The same with the policy that lies in `folder`."""
    if config.model.kind == "masked":
        from dav_ray.diffusion.masked import MaskedDiffusion

        return MaskedDiffusion.from_checkpoint(folder, alphabet=config.model.alphabet, **_sampling(config))
    from dav_ray.diffusion.stable_diffusion_files import attach

    pipe = pretrained(config)
    attach(pipe, folder, lora=config.mstep.parameters == "lora")
    return pipe


def _sampling(config: Config) -> dict[str, Any]:
    return {"steps": config.search.steps, "guidance_scale": config.search.guidance_scale}
