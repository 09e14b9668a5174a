"""The family of `FluxPipeline`: FLUX.1 dev and schnell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dav_ray.config.families.latents import Flow
from dav_ray.config.families.pipeline_checks import Layout
from dav_ray.config.families.prompt_lengths import Reader

if TYPE_CHECKING:
    from dav_ray.config.schema import Config

SCHNELL_TEXT = 256  # tokens of T5


class Flux(Flow):
    """A rectified flow over packed latents, with CLIP's pooled text and T5. Guidance is a number that dev is told, and
    schnell is not: one pass in any case."""

    adapter = "dav_ray.diffusion.pipelines.flows.flux:Flux"
    guided = False
    unused = ("negative_prompt",)
    text = 512
    lora_targets = (
        *(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
        *(f"attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    )
    readers = (Reader(), Reader("tokenizer_2", 512, reserved=1, needs="text_encoder_2"))
    layout = Layout(
        name="FluxPipeline",
        words="a FluxPipeline (FLUX.1 dev, schnell)",
        policy="transformer",
        networks=("transformer", "vae", "text_encoder", "text_encoder_2"),
        parts=("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"),
        others=frozenset({"controlnet", "image_encoder"}),
        packed=4,
    )

    def takes_guidance(self, config: Config) -> bool:
        return self.part(config, "transformer").get("guidance_embeds", True)

    def tokens(self, config: Config) -> int:
        """Schnell was made for half as many."""
        return self.text if self.takes_guidance(config) else SCHNELL_TEXT
