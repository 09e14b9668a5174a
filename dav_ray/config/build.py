"""From a configuration to what runs: the model with its policy, and the search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dav_ray.config.families.base import Runtime
from dav_ray.config.families.table import family_of
from dav_ray.config.schema import Config
from dav_ray.diffusion.base import Diffusion
from dav_ray.search import kinds
from dav_ray.search.base import Search
from dav_ray.search.options import Search as SearchConfig
from dav_ray.search.weighting.temperature import number


def build(
    config: Config, *, device: str = "cpu", autocast: str = "float32", micro_batch: int | None = None
) -> Diffusion:
    """The model of a configuration with its policy, pretrained so far. UserError if its files do not fit."""
    lora = config.mstep.lora
    held = Runtime(micro_batch or config.search.micro_batch, device, autocast)
    diffusion = family_of(config.model).build(config, held)
    if config.mstep.parameters == "lora":
        diffusion.add_adapters(lora.rank, lora.alpha, config.lora_targets, config.seed)
    else:
        diffusion.train_all_weights()
    return diffusion


def for_search(config: Config, *, device: str = "cpu") -> Diffusion:
    """The model as a search worker has it."""

    diffusion = build(config, device=device, autocast=config.search.precision)
    diffusion.graphs.limit = config.search.gradient_batch or diffusion.graphs.limit
    if config.search.merge == "on" or (config.search.merge == "auto" and device == "cuda"):
        diffusion.merge()
    if config.search.compile:
        diffusion.compile()
    return diffusion


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
