"""From a configuration to what runs: the model with its policy, and the search."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch

from dav_ray.config.batches import SHARE, TRAINED
from dav_ray.config.families.base import Runtime
from dav_ray.config.families.table import family_of
from dav_ray.config.schema import Config
from dav_ray.diffusion.base import Diffusion
from dav_ray.errors import UserError
from dav_ray.mstep.memory import exceeds
from dav_ray.registry import on_path
from dav_ray.search import kinds
from dav_ray.search.base import Search
from dav_ray.search.options import Search as SearchConfig
from dav_ray.search.weighting.temperature import number


def build(
    config: Config, *, device: str = "cpu", autocast: str = "float32", micro_batch: int | None = None
) -> Diffusion:
    """The model of a configuration with its policy, pretrained so far. UserError if its files do not fit."""
    on_path(config.modules)
    held = Runtime(micro_batch or config.search.micro_batch, device, autocast)
    return family_of(config.model).with_new_policy(config, held)


def for_search(config: Config, *, device: str = "cpu") -> Diffusion:
    """The model as a search worker has it: for the configuration's prompts alone, where it has some."""
    diffusion = build(config, device=device, autocast=config.search.precision)
    diffusion.release(config.prompts)
    diffusion.graphs.limit = config.search.gradient_batch or diffusion.graphs.limit
    if config.search.merge == "on" or (config.search.merge == "auto" and device == "cuda"):
        diffusion.merge()
    if config.search.compile:
        diffusion.compile()
    return diffusion


def for_training(config: Config, *, device: str = "cpu", micro_batch: int | None = None) -> Diffusion:
    """The model as a rank has it, for the configuration's prompts; it decodes nothing. UserError if its network can't
    do what `mstep.checkpointing` asks for."""
    mstep = config.mstep
    diffusion = build(config, device=device, autocast=mstep.precision, micro_batch=micro_batch)
    diffusion.release(config.prompts, decodes=False)
    if mstep.checkpointing == "on":
        try:
            diffusion.checkpoint()
        except ValueError as error:
            raise UserError(f"mstep.checkpointing = on: {error}; allowed: off") from None
    elif mstep.checkpointing == "auto" and _is_short_of_memory(config, diffusion, device, micro_batch):
        with contextlib.suppress(ValueError):  # memory may run out, and the micro-batch is halved then
            diffusion.checkpoint()
    return diffusion


def _is_short_of_memory(config: Config, diffusion: Diffusion, device: str, micro_batch: int | None) -> bool:
    """Whether a rank's share of its GPU would not hold a micro-batch's graph; never on the host."""
    if device.partition(":")[0] != "cuda":
        return False
    trained = sum(p.numel() for p in diffusion.trainable().parameters() if p.requires_grad)
    whole = min(1.0, config.roles.train.gpus) * torch.cuda.mem_get_info()[1]
    free = SHARE * whole - torch.cuda.memory_allocated() - TRAINED * trained
    return exceeds(diffusion, config.prompts[0], micro_batch or config.mstep.micro_batch, free)


def pretrained(config: Config) -> Any:
    """What users sample from, before any alignment: a `StableDiffusionPipeline`, or a `MaskedDiffusion`."""
    return family_of(config.model).pretrained(config)


def aligned(config: Config, folder: Path) -> Any:
    """The same with the policy that lies in `folder`."""
    return family_of(config.model).aligned(config, folder)


def strategy(
    config: SearchConfig, alpha: float | None = None, *, blend: bool = False, complete: bool = False
) -> Search:
    """The configured search; alpha: what `search.alpha` came to where it is in standard deviations.

    Its trajectories carry to the M-step all candidates (blend: mstep.candidates = all), or the winners' completed x_0
    (complete: mstep.target = completed).
    """
    return kinds.build(config, number(config.alpha, alpha), blend=blend, complete=complete)
