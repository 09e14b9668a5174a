"""The family of `QwenImagePipeline`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dav_ray.config.families.latents import Flow
from dav_ray.config.families.pipeline_checks import Layout, guidance_mistakes
from dav_ray.config.families.prompt_lengths import Reader

if TYPE_CHECKING:
    from dav_ray.config.schema import Config


class QwenImage(Flow):
    """A rectified flow over packed latents, with Qwen 2.5 VL as its text encoder."""

    adapter = "dav_ray.diffusion.pipelines.flows.qwen_image:QwenImage"
    unused = ("draft_vae", "channels_last")
    text = 128  # with those of its template
    lora_targets = (
        *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        *("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"),
    )
    readers = (Reader(limit=512, reserved=0),)  # the template's begin does not count
    layout = Layout(
        name="QwenImagePipeline",
        words="a QwenImagePipeline",
        policy="transformer",
        networks=("transformer", "vae", "text_encoder"),
        parts=("transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
        others=frozenset({"controlnet", "image_encoder", "processor"}),
        packed=4,
    )

    def mistakes(self, config: Config, path: str) -> Iterator[str]:
        yield from super().mistakes(config, path)
        if config.model.negative_prompt is None:
            yield from guidance_mistakes(config, "without model.negative_prompt there is no guidance")

    def passes(self, config: Config) -> int:
        """As the pipeline does: without a negative prompt there is no guidance."""
        return 2 if config.search.guidance_scale > 1 and config.model.negative_prompt is not None else 1
