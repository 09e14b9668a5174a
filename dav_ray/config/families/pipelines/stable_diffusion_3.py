"""The family of `StableDiffusion3Pipeline`: SD 3 and 3.5."""

from __future__ import annotations

from dav_ray.config.families.latents import Flow
from dav_ray.config.families.pipeline_checks import Layout
from dav_ray.config.families.prompt_lengths import Reader


class StableDiffusion3(Flow):
    """A rectified flow with two CLIP text encoders and T5, which may be left out."""

    adapter = "dav_ray.diffusion.pipelines.stable_diffusion_3:StableDiffusion3"
    text = 333  # CLIP's 77 and T5's 256
    optional = ("text_encoder_3",)
    lora_targets = tuple(
        f"attn.{name}"
        for name in (
            *("to_q", "to_k", "to_v", "to_out.0"),
            *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        )
    )
    readers = (
        Reader(),
        Reader("tokenizer_2", needs="text_encoder_2"),
        Reader("tokenizer_3", 256, reserved=1, needs="text_encoder_3"),
    )
    layout = Layout(
        name="StableDiffusion3Pipeline",
        words="a StableDiffusion3Pipeline (SD 3, 3.5)",
        policy="transformer",
        networks=("transformer", "vae", "text_encoder", "text_encoder_2"),
        parts=("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"),
        others=frozenset({"controlnet", "image_encoder"}),
    )
