"""The family of `Flux2KleinPipeline`: FLUX.2 klein, distilled and base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dav_ray.config.families.latents import Flow
from dav_ray.config.families.pipeline_checks import Layout
from dav_ray.config.families.prompt_lengths import Reader
from dav_ray.config.families.published import published
from dav_ray.config.families.sizes import json_if_there
from dav_ray.config.model_path import model_path
from dav_ray.diffusion.pipelines.hub import INDEX

if TYPE_CHECKING:
    from dav_ray.config.schema import Config


class Flux2Klein(Flow):
    """A rectified flow over packed latents, with a Qwen3 text encoder. Distilled models take no guidance."""

    adapter = "dav_ray.diffusion.pipelines.flows.flux_2_klein:Flux2Klein"
    unused = ("negative_prompt",)
    text = 512
    lora_targets = (
        *(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
        *(f"attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "to_qkv_mlp_proj")),
        *("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out"),
    )
    readers = (Reader(limit=512, reserved=3),)  # the chat's begin
    layout = Layout(
        name="Flux2KleinPipeline",
        words="a Flux2KleinPipeline (FLUX.2 klein)",
        policy="transformer",
        networks=("transformer", "vae", "text_encoder"),
        parts=("transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
        others=frozenset({"controlnet", "image_encoder"}),
        packed=4,
    )

    def takes_guidance(self, config: Config) -> bool:
        path = model_path(config.model.path)
        index = json_if_there(Path(path) / INDEX) or published(path, INDEX)
        return not index.get("is_distilled")

    def passes(self, config: Config) -> int:
        return super().passes(config) if self.takes_guidance(config) else 1
