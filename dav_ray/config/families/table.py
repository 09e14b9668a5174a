"""The model families by `model.kind`. Classes are named, not imported: only that of the model in hand is loaded."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from dav_ray.config.families.base import Family
from dav_ray.config.imports import said_import
from dav_ray.registry import Entry, Registry, Unregistered, load

if TYPE_CHECKING:
    from dav_ray.config.sections.model import Model

REQUIRED = "samples", "lora_targets"  # of a family's facts
log = logging.getLogger(__name__)  # which code of the user's own is imported, before it is

MODELS = Registry(
    "dav_ray.models",
    "model family",
    {
        "diffusers": Entry(
            "dav_ray.config.families.pipelines.stable_diffusion:StableDiffusion", "images: a StableDiffusionPipeline"
        ),
        "masked": Entry("dav_ray.config.families.masked:Masked", "sequences: masked discrete diffusion (MDLM)"),
    },
)
PIPELINES = {  # of kind diffusers, by the class that model_index.json names
    "DDIMPipeline": "dav_ray.config.families.pipelines.unconditional:DDIM",
    "DDPMPipeline": "dav_ray.config.families.pipelines.unconditional:DDPM",
    "Flux2KleinPipeline": "dav_ray.config.families.pipelines.flux_2_klein:Flux2Klein",
    "FluxPipeline": "dav_ray.config.families.pipelines.flux:Flux",
    "LatentConsistencyModelPipeline": "dav_ray.config.families.pipelines.latent_consistency:LatentConsistency",
    "Lumina2Pipeline": "dav_ray.config.families.pipelines.lumina_2:Lumina2",
    "QwenImagePipeline": "dav_ray.config.families.pipelines.qwen_image:QwenImage",
    "SanaPipeline": "dav_ray.config.families.pipelines.sana:Sana",
    "SanaSprintPipeline": "dav_ray.config.families.pipelines.sana:SanaSprint",
    "StableDiffusionPipeline": MODELS.target("diffusers"),
    "StableDiffusionXLPipeline": "dav_ray.config.families.pipelines.stable_diffusion_xl:StableDiffusionXL",
    "StableDiffusion3Pipeline": "dav_ray.config.families.pipelines.stable_diffusion_3:StableDiffusion3",
    "ZImagePipeline": "dav_ray.config.families.pipelines.z_image:ZImage",
}
USUAL = "diffusers"  # where a recipe names no kind


def family_of(model: Model) -> Family:
    """The family of a configuration's model."""
    return named(model.kind).at(model.path)


def ships(section: Any) -> bool:
    """Whether the kind of a section `model` is a part of dav_ray: asking its family imports nobody else's code."""
    return isinstance(section, Mapping) and section.get("kind", USUAL) in MODELS.builtin


def family_of_section(section: Any) -> Family | None:
    """The family of a section `model` as it is typed, which may be anything; None where it names none that is of
    use."""
    kind = section.get("kind", USUAL) if isinstance(section, Mapping) else None
    if not isinstance(kind, str):
        return None
    try:
        family = named(kind)
    except Unregistered:
        return None
    path = section.get("path")
    return family.at(path) if isinstance(path, str) else family


@cache
def named(kind: str) -> Family:
    """The family of a kind: one that ships with dav_ray, or of a package that registered it, or module.path:Name or
    path/to/file.py:Name. Unregistered, saying why, where there is none that can be used."""
    target = MODELS.target(kind)
    if kind in MODELS.builtin:
        return load(target)()
    _announce(target)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what it prints is no part of a dry run
            made = load(target)
            if not (isinstance(made, type) and issubclass(made, Family)):
                raise TypeError("is no subclass of dav_ray.config.families.base.Family")
            if missing := [name for name in REQUIRED if not hasattr(made, name)]:
                raise TypeError(f"does not set {' and '.join(missing)}")
            return made()
    except Exception as error:  # a module of the user's own may raise anything
        raise Unregistered(f"can't be used ({type(error).__name__}: {error})") from error


@cache
def _announce(target: str) -> None:
    """Once in a process."""
    log.info(said_import("model.kind", target))


def usable() -> list[str]:
    """The names that a recipe can give: those of other packages too, but for entries that are at fault."""
    return [kind for kind in MODELS if not MODELS.fault(kind)]


@cache
def pipeline_of(class_name: str | None) -> Family | None:
    """The family of a class of pipelines; None for one that has none of its own."""
    return load(PIPELINES[class_name])() if class_name in PIPELINES else None
