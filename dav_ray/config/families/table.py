"""The model families by `model.kind`. Classes are named, not imported: only that of the model in hand is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from dav_ray.registry import Entry, Registry, load

if TYPE_CHECKING:
    from dav_ray.config.families.base import Family
    from dav_ray.config.sections.model import Model

MODELS = Registry(
    "dav_ray.models",
    "model family",
    {
        "diffusers": Entry(
            "dav_ray.config.families.stable_diffusion:StableDiffusion", "images: a StableDiffusionPipeline"
        ),
        "masked": Entry("dav_ray.config.families.masked:Masked", "sequences: masked discrete diffusion (MDLM)"),
    },
)
PIPELINES = {  # of kind diffusers, by the class that model_index.json names
    "StableDiffusionPipeline": MODELS.target("diffusers"),
}
USUAL = "diffusers"  # where a recipe names no kind


def family_of(model: Model) -> Family:
    """The family of a configuration's model."""
    return named(model.kind).at(model.path)


def family_of_section(section: Any) -> Family | None:
    """The family of a section `model` as it is typed, which may be anything; None where it names none."""
    kind = section.get("kind", USUAL) if isinstance(section, Mapping) else None
    if not isinstance(kind, str) or MODELS.fault(kind):
        return None
    path = section.get("path")
    return named(kind).at(path) if isinstance(path, str) else named(kind)


@cache
def named(kind: str) -> Family:
    """The family of a kind. Unregistered, or what the import of its file raises."""
    return MODELS.load(kind)()


def usable() -> list[str]:
    """The kinds that a recipe can name: those of other packages too, but for entries that are at fault."""
    return [kind for kind in MODELS if not MODELS.fault(kind)]


@cache
def pipeline_of(class_name: str | None) -> Family | None:
    """The family of a class of pipelines; None for one that has none of its own."""
    return load(PIPELINES[class_name])() if class_name in PIPELINES else None
