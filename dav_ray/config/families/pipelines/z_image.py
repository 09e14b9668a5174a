"""The family of `ZImagePipeline`: Z-Image and Z-Image-Turbo."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dav_ray.config.families.latents import Flow
from dav_ray.config.families.pipeline_checks import Layout
from dav_ray.config.families.prompt_lengths import Reader

if TYPE_CHECKING:
    from dav_ray.config.schema import Config


class ZImage(Flow):
    """A rectified flow with a Qwen3 text encoder."""

    adapter = "dav_ray.diffusion.pipelines.flows.z_image:ZImage"
    text = 128  # with those of its template
    lora_targets = (
        *(f"attention.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
        *(f"feed_forward.{name}" for name in ("w1", "w2", "w3")),
    )
    readers = (Reader(limit=512, reserved=3),)  # the chat's begin
    layout = Layout(
        name="ZImagePipeline",
        words="a ZImagePipeline (Z-Image, Z-Image-Turbo)",
        policy="transformer",
        networks=("transformer", "vae", "text_encoder"),
        parts=("transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
        others=frozenset({"controlnet", "image_encoder", "siglip"}),
    )

    def passes(self, config: Config) -> int:
        """As the pipeline does: no guidance is 0 here, and 1 is some."""
        return 2 if config.search.guidance_scale > 0 else 1
