"""Families of pipelines whose adapter takes the pipeline itself: what is known of them before torch is imported."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dav_ray.config.families.base import Runtime
from dav_ray.config.families.described import enlarged
from dav_ray.config.families.pipeline import SCHEDULER, Pipeline, latent_options
from dav_ray.config.families.pipeline_checks import guidance_mistakes, read_part, size_mistakes, useless
from dav_ray.diffusion.pipelines.schedulers import CONVERTIBLE, FLOWS, mistakes
from dav_ray.redact import show
from dav_ray.registry import load

if TYPE_CHECKING:
    from dav_ray.config.schema import Config
    from dav_ray.diffusion.base import Adaptable


class Latents(Pipeline):
    """A text-to-image pipeline over latents. A subclass names its parts, and its adapter.

    adapter: module:Name of the `LatentModel`; schedulers: the classes that its scheduler may have; multiple: of what
    height and width must be.
    """

    adapter: ClassVar[str]
    schedulers: ClassVar[frozenset[str]] = frozenset(CONVERTIBLE)
    side = 1024
    multiple: ClassVar[int] = 16
    guided: ClassVar[bool] = True  # classifier-free guidance takes a second pass

    def mistakes(self, config: Config, path: str) -> Iterator[str]:
        yield from super().mistakes(config, path)
        yield from size_mistakes(config.model, self.multiple)
        yield from useless(config.model, self.unused, self.layout)
        if not self.takes_guidance(config):
            yield from guidance_mistakes(config)
        elif config.model.negative_prompt is not None and self.passes(config) == 1 and self.guided:
            value = show(config.model.negative_prompt)
            yield f"model.negative_prompt = {value}: is of no use without guidance; allowed: null, or with guidance"

    def takes_guidance(self, config: Config) -> bool:
        """Whether the scale changes what is drawn, as far as the model's files tell."""
        return True

    def schedule_mistakes(self, key: str, folder: Path, config: Config) -> Iterator[str]:
        try:
            scheduler = read_part(folder / SCHEDULER)
        except ValueError as error:
            yield f"{key}: {error}"
            return
        yield from (f"{key}: can't be searched: {line}" for line in mistakes(scheduler, self.schedulers))

    def passes(self, config: Config) -> int:
        return 2 if self.guided and config.search.guidance_scale > 1 else 1

    def shape(self, config: Config) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        own = self.own_side(config)
        return config.model.height or own, config.model.width or own

    def own_side(self, config: Config) -> int:
        """Of the images that the pipeline draws if it is not told a size: its network's latents, enlarged by the
        VAE."""
        latents = self.part(config, self.layout.policy).get("sample_size")
        with contextlib.suppress(ValueError):
            return latents * enlarged(self.part(config, "vae")) if isinstance(latents, int) else self.side
        return self.side

    def build(self, config: Config, held: Runtime) -> Adaptable:
        from dav_ray.diffusion.device import quiet
        from dav_ray.diffusion.pipelines.files import load_draft_vae

        quiet()
        model, pipe = config.model, self.pretrained(config)
        if model.draft_vae:
            pipe.draft_vae = load_draft_vae(model.draft_vae, pipe.vae, model.dtype)
        height, width = self.shape(config)
        return load(self.adapter)(
            pipe,
            height=height,
            width=width,
            **latent_options(config, held),
        )

    def pretrained(self, config: Config) -> Any:
        """The pipeline, of its own class."""
        from dav_ray.diffusion.pipelines.files import load_pipeline

        return load_pipeline(**self.files(config), pipeline=self.layout.name, schedulers=self.schedulers)


class Flow(Latents):
    """A rectified flow, whose network is a transformer."""

    flow = True
    schedulers = frozenset(FLOWS)
