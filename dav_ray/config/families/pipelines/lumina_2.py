"""The family of `Lumina2Pipeline`: Lumina-Image 2.0."""

from __future__ import annotations

from dav_ray.config.families.latents import Flow
from dav_ray.config.families.pipeline_checks import Layout


class Lumina2(Flow):
    """A rectified flow with a Gemma 2 text encoder."""

    adapter = "dav_ray.diffusion.pipelines.flows.lumina_2:Lumina2"
    text = 256
    lora_targets = tuple(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0"))
    layout = Layout(
        name="Lumina2Pipeline",
        words="a Lumina2Pipeline (Lumina-Image 2.0)",
        policy="transformer",
        networks=("transformer", "vae", "text_encoder"),
        parts=("transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
        others=frozenset({"controlnet", "image_encoder"}),
    )
