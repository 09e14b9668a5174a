"""The families of `DDPMPipeline` and `DDIMPipeline`: unconditional images in pixel space."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dav_ray.config.families.base import Runtime
from dav_ray.config.families.pipeline import Pipeline
from dav_ray.config.families.pipeline_checks import Layout, guidance_mistakes, useless
from dav_ray.config.families.pipelines.stable_diffusion import USUAL_SIDE, ddim_mistakes
from dav_ray.config.families.sizes import json_if_there
from dav_ray.config.model_path import model_path

if TYPE_CHECKING:
    from dav_ray.config.schema import Config
    from dav_ray.diffusion.base import Adaptable

CLASSES = ("class_embed_type", "num_class_embeds")  # of a UNet that is told a class


class DDPM(Pipeline):
    """A UNet over pixels. A recipe needs no prompts, and what it says of guidance means nothing."""

    conditional = False
    unused = ("draft_vae", "height", "width", "negative_prompt", "max_sequence_length", "long_prompts")
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    imports = ("dav_ray.diffusion.pipelines.unconditional", "diffusers:DDIMPipeline")
    layout = Layout(
        name="DDPMPipeline",
        words="a DDPMPipeline",
        policy="unet",
        networks=("unet",),
        parts=("unet", "scheduler"),
        others=frozenset({"vae", "vqvae", "text_encoder", "transformer", "controlnet", "movq", "prior"}),
    )

    def mistakes(self, config: Config, path: str) -> Iterator[str]:
        yield from super().mistakes(config, path)
        yield from useless(config.model, self.unused, self.layout)
        yield from guidance_mistakes(config)

    def schedule_mistakes(self, key: str, folder: Path, config: Config) -> Iterator[str]:
        yield from ddim_mistakes(key, folder, config.search.steps)
        unet = json_if_there(folder / "unet/config.json")
        if unet and unet.get("in_channels") not in (1, 3):
            yield f"{key}: its unet draws {unet.get('in_channels')} channels; allowed: 1 (grey) or 3 (colours)"
        if any(unet.get(name) is not None for name in CLASSES):
            yield f"{key}: its unet is told a class; allowed: one without {' and '.join(CLASSES)}"

    def passes(self, config: Config) -> int:
        return 1

    def shape(self, config: Config) -> tuple[int, int]:
        size = json_if_there(Path(model_path(config.model.path)) / "unet/config.json").get("sample_size")
        if isinstance(size, list) and len(size) == 2:
            return size[0], size[1]
        return (size, size) if isinstance(size, int) else (USUAL_SIDE, USUAL_SIDE)

    def flops(self, config: Config) -> None:
        """Nothing is known of the work of its blocks."""

    def sample_bytes(self, config: Config) -> int | None:
        """Three colours as float32."""
        height, width = self.shape(config)
        return 4 * 3 * height * width

    def build(self, config: Config, held: Runtime) -> Adaptable:
        from dav_ray.diffusion.device import quiet
        from dav_ray.diffusion.pipelines.unconditional import Unconditional

        quiet()
        return Unconditional(
            self.pretrained(config),
            steps=config.search.steps,
            eta=config.search.eta,
            noise=config.search.noise or "ddim",
            micro_batch=held.micro_batch,
            device=held.device,
            autocast=held.autocast,
            channels_last=config.model.channels_last,
        )

    def pretrained(self, config: Config) -> Any:
        """A `DDIMPipeline`, whose call takes eta."""
        from dav_ray.diffusion.pipelines.files import load_pipeline

        return load_pipeline(**self.files(config), pipeline="DDIMPipeline")

    def aligned(self, config: Config, folder: Path) -> Any:
        """Adapters are in its weights: it can be saved as any other."""
        from dav_ray.diffusion.adapters import folded

        pipe, model = self.pretrained(config), self.with_policy(config, folder)
        network = model.trainable()
        pipe.register_modules(unet=folded(network).eval() if model.adapted else network)
        return pipe


class DDIM(DDPM):
    layout = replace(DDPM.layout, name="DDIMPipeline", words="a DDIMPipeline")
