"""The family of `StableDiffusionXLPipeline`: the base model, Turbo, and weights distilled from it."""

from __future__ import annotations

from dav_ray.config.families.latents import Latents
from dav_ray.config.families.pipeline_checks import Layout
from dav_ray.config.families.prompt_lengths import Reader


class StableDiffusionXL(Latents):
    """A UNet over a VAE's latents, two text encoders, and the image's size as a condition."""

    adapter = "dav_ray.diffusion.pipelines.stable_diffusion_xl:StableDiffusionXL"
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    multiple = 8
    unused = ("max_sequence_length",)
    readers = (Reader(), Reader("tokenizer_2", needs="text_encoder_2"))
    layout = Layout(
        name="StableDiffusionXLPipeline",
        words="a StableDiffusionXLPipeline",
        policy="unet",
        networks=("unet", "vae", "text_encoder", "text_encoder_2"),
        parts=("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"),
        others=frozenset({"controlnet", "image_encoder", "transformer"}),
    )
