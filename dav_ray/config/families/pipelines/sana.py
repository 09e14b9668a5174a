"""The families of `SanaPipeline` (1.0, 1.5) and of `SanaSprintPipeline`, which draws in one to four steps."""

from __future__ import annotations

from dataclasses import replace

from dav_ray.config.families.latents import Flow
from dav_ray.config.families.pipeline_checks import Layout
from dav_ray.config.families.prompt_lengths import Reader
from dav_ray.diffusion.pipelines.schedulers import ANGLES, FLOW_SOLVERS, FLOWS


class Sana(Flow):
    """A rectified flow with Gemma as its text encoder. Images have exactly the size that is asked for."""

    adapter = "dav_ray.diffusion.pipelines.flows.sana:Sana"
    text = 300
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    schedulers = frozenset(FLOWS | FLOW_SOLVERS)
    multiple = 32
    unused = ("draft_vae",)  # nobody makes a small decoder for its latents
    readers = (Reader(limit=300),)  # beside the instruction
    layout = Layout(
        name="SanaPipeline",
        words="a SanaPipeline (1.0, 1.5)",
        policy="transformer",
        networks=("transformer", "vae", "text_encoder"),
        parts=("transformer", "vae", "text_encoder", "tokenizer", "scheduler"),
        others=frozenset({"controlnet", "image_encoder", "text_encoder_2"}),
    )


class SanaSprint(Sana):
    """The guidance scale is an input of the network; there is no negative prompt."""

    adapter = "dav_ray.diffusion.pipelines.few_step.sana_sprint:SanaSprint"
    schedulers = frozenset(ANGLES)
    unused = ("draft_vae", "negative_prompt")
    guided = False
    layout = replace(Sana.layout, name="SanaSprintPipeline", words="a SanaSprintPipeline")
