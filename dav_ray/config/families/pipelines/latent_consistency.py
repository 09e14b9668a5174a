"""The family of `LatentConsistencyModelPipeline`: Stable Diffusion distilled to a few steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dav_ray.config.families.latents import Latents
from dav_ray.config.families.pipeline import SCHEDULER
from dav_ray.config.families.pipeline_checks import Layout
from dav_ray.config.families.prompt_lengths import Reader
from dav_ray.config.families.sizes import json_if_there
from dav_ray.diffusion.pipelines.schedulers import CONSISTENCY

if TYPE_CHECKING:
    from dav_ray.config.schema import Config

ORIGINAL = 50  # steps of the distillation, where the scheduler names none


class LatentConsistency(Latents):
    """A UNet that is told the guidance scale; there is no negative prompt."""

    adapter = "dav_ray.diffusion.pipelines.few_step.latent_consistency:LatentConsistency"
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    schedulers = frozenset(CONSISTENCY)
    unused = ("negative_prompt", "max_sequence_length")
    guided = False
    side = 512
    multiple = 8
    readers = (Reader(),)
    layout = Layout(
        name="LatentConsistencyModelPipeline",
        words="a LatentConsistencyModelPipeline",
        policy="unet",
        networks=("unet", "vae", "text_encoder"),
        parts=("unet", "vae", "text_encoder", "tokenizer", "scheduler"),
        others=frozenset({"controlnet", "image_encoder", "text_encoder_2", "transformer"}),
    )

    def schedule_mistakes(self, key: str, folder: Path, config: Config) -> Iterator[str]:
        yield from super().schedule_mistakes(key, folder, config)
        most = json_if_there(folder / SCHEDULER).get("original_inference_steps", ORIGINAL)
        if isinstance(most, int) and config.search.steps > most:
            yield f"search.steps = {config.search.steps}: out of range; allowed: 2 to {most}, those of its distillation"
        unet = json_if_there(folder / self.layout.policy / "config.json")
        if unet and unet.get("time_cond_proj_dim") is None:
            yield f"{key}: its unet takes no guidance scale; allowed: one with time_cond_proj_dim"
