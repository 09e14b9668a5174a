"""The family of `Lumina2Pipeline`: Lumina-Image 2.0."""

from __future__ import annotations

from dav_ray.config.families.latents import Flow
from dav_ray.config.families.pipeline_checks import Layout
from dav_ray.config.families.prompt_lengths import Reader

SYSTEM = (  # what the pipeline tells its encoder first
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based "
    "on textual prompts or user prompts."
)


class Lumina2(Flow):
    """A rectified flow with a Gemma 2 text encoder."""

    adapter = "dav_ray.diffusion.pipelines.flows.lumina_2:Lumina2"
    text = 256
    lora_targets = tuple(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0"))
    readers = (Reader(limit=256, reserved=1, prefix=f"{SYSTEM} <Prompt Start> "),)
    layout = Layout(
        name="Lumina2Pipeline",
        words="a Lumina2Pipeline (Lumina-Image 2.0)",
        policy="transformer",
        networks=("transformer", "vae", "text_encoder"),
        parts=("transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
        others=frozenset({"controlnet", "image_encoder"}),
    )
