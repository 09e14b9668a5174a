"""One case of each pipeline: what it is built of, the adapter with its settings, and the pipeline's own pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dav_ray.diffusion.pipelines.few_step.latent_consistency import LatentConsistency
from dav_ray.diffusion.pipelines.few_step.sana_sprint import SanaSprint
from dav_ray.diffusion.pipelines.flows.flux import Flux
from dav_ray.diffusion.pipelines.flows.flux_2_klein import Flux2Klein
from dav_ray.diffusion.pipelines.flows.lumina_2 import Lumina2
from dav_ray.diffusion.pipelines.flows.qwen_image import QwenImage
from dav_ray.diffusion.pipelines.flows.sana import Sana
from dav_ray.diffusion.pipelines.flows.z_image import ZImage
from dav_ray.diffusion.pipelines.stable_diffusion import StableDiffusion
from dav_ray.diffusion.pipelines.stable_diffusion_3 import StableDiffusion3
from dav_ray.diffusion.pipelines.stable_diffusion_xl import StableDiffusionXL
from tests.support.oracle import Recorded
from tests.support.pipelines import (
    flux,
    flux_2_klein,
    latent_consistency,
    lumina_2,
    qwen_image,
    sana,
    sana_sprint,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    unconditional,
    z_image,
)
from tests.support.tiny import tiny_pipeline


@dataclass(frozen=True)
class Case:
    """pipeline: its class in diffusers; tiny: one with random weights, whose tokenizers may write into a folder;
    adapter: the class that samples from it, with `steps` and `options`; draw: what the pipeline's call draws with these
    settings from the states `begin()`. noise: what its own steps draw from, anew; None: they draw nothing (eta = 0).
    search: further keys of a recipe."""

    pipeline: str
    tiny: Callable[[Path], Any]
    adapter: Callable[..., Any]
    draw: Callable[[Any], Recorded]
    begin: Callable[[], Tensor]
    prompts: Sequence[str]
    steps: int = 4
    options: Mapping[str, Any] = field(default_factory=dict)
    noise: Callable[[], torch.Generator] | None = None
    search: Mapping[str, Any] = field(default_factory=dict)

    def oracle(self, pipe: Any) -> Any:
        """The adapter whose steps are the pipeline's own."""
        return self.adapter(pipe, steps=self.steps, **self.options, **({} if self.noise else {"eta": 0.0}))

    def sampler(self, pipe: Any) -> Any:
        """The adapter with the noise of a run of `recipe`."""
        return self.adapter(pipe, steps=self.steps, **self.options, **self.search)

    @property
    def conditional(self) -> bool:
        return any(self.prompts)

    def recipe(self, path: str) -> dict[str, Any]:
        """The sections model, prompts and search of a recipe with these settings; path: of the pipeline's folder."""
        model = {name: value for name, value in self.options.items() if name != "guidance_scale"}
        search = {name: value for name, value in self.options.items() if name == "guidance_scale"}
        sections: dict[str, Any] = {"model": {"path": path, **model}}
        sections |= {"prompts": list(self.prompts)} if self.conditional else {}
        return {**sections, "search": {"steps": self.steps, **search, **self.search}}


def _size(side: int, guidance: float, **options: Any) -> dict[str, Any]:
    return {"height": side, "width": side, "guidance_scale": guidance, **options}


FLOW = {"noise": "cps", "eta": [0.7, 0.7]}  # two steps of four draw noise
UNCONDITIONAL: dict[str, Any] = {
    "adapter": unconditional.adapter,
    "begin": unconditional.begin,
    "prompts": unconditional.NONE,
    "noise": unconditional.begun,
}

CASES = {
    case.pipeline: case
    for case in (
        Case(
            "StableDiffusionPipeline",
            lambda folder: tiny_pipeline(folder),
            StableDiffusion,
            stable_diffusion.drawn(3.0),
            stable_diffusion.begin,
            stable_diffusion.PROMPTS,
            options={"guidance_scale": 3.0},
        ),
        Case(
            "StableDiffusionXLPipeline",
            lambda folder: stable_diffusion_xl.tiny(folder),
            StableDiffusionXL,
            stable_diffusion_xl.drawn(3.0),
            stable_diffusion_xl.begin,
            stable_diffusion_xl.PROMPTS,
            options=_size(16, 3.0),
        ),
        Case(
            "StableDiffusion3Pipeline",
            lambda folder: stable_diffusion_3.tiny(folder),
            StableDiffusion3,
            stable_diffusion_3.drawn(3.0),
            stable_diffusion_3.begin,
            stable_diffusion_3.PROMPTS,
            options=_size(16, 3.0),
            search=FLOW,
        ),
        Case(
            "FluxPipeline",
            lambda folder: flux.tiny(folder),
            Flux,
            flux.drawn(),
            flux.begin,
            flux.PROMPTS,
            options=_size(16, 3.5),
            search=FLOW,
        ),
        Case(
            "Flux2KleinPipeline",
            lambda folder: flux_2_klein.tiny(),
            Flux2Klein,
            flux_2_klein.drawn(guidance=4.0),
            flux_2_klein.begin,
            flux_2_klein.PROMPTS,
            options=_size(16, 4.0),
            search=FLOW,
        ),
        Case(
            "ZImagePipeline",
            lambda folder: z_image.tiny(),
            ZImage,
            z_image.drawn(),
            z_image.begin,
            z_image.PROMPTS,
            options=_size(16, 4.0),
            search=FLOW,
        ),
        Case(
            "Lumina2Pipeline",
            lambda folder: lumina_2.tiny(),
            Lumina2,
            lumina_2.drawn(),
            lumina_2.begin,
            lumina_2.PROMPTS,
            options=_size(32, 4.0),
            search=FLOW,
        ),
        Case(
            "QwenImagePipeline",
            lambda folder: qwen_image.tiny(),
            QwenImage,
            qwen_image.drawn(),
            qwen_image.begin,
            qwen_image.PROMPTS,
            options=_size(16, 4.0, negative_prompt=" "),
            search=FLOW,
        ),
        Case(
            "SanaPipeline",
            lambda folder: sana.tiny(),
            Sana,
            sana.drawn(32, 32, 4.5),
            lambda: sana.begin(32, 32),
            sana.PROMPTS,
            options=_size(32, 4.5),
            search=FLOW,
        ),
        Case(
            "SanaSprintPipeline",
            lambda folder: sana_sprint.tiny(),
            SanaSprint,
            sana_sprint.drawn(2, 4.5, 32, 32),
            lambda: sana_sprint.begin(32, 32),
            sana_sprint.PROMPTS,
            steps=2,
            options=_size(32, 4.5),
            noise=sana_sprint.seeded,
        ),
        Case(
            "LatentConsistencyModelPipeline",
            lambda folder: latent_consistency.tiny(folder),
            LatentConsistency,
            latent_consistency.drawn(),
            latent_consistency.begin,
            latent_consistency.PROMPTS,
            options=_size(16, 8.5),
            noise=latent_consistency.seeded,
        ),
        Case(
            "DDPMPipeline",
            # where guesses are clipped, DDPM's mean is not DDIM's
            lambda folder: unconditional.tiny(ddim=False, scheduler={"clip_sample": False}),
            draw=lambda pipe: unconditional.drawn(pipe),
            **UNCONDITIONAL,
        ),
        Case(
            "DDIMPipeline",
            lambda folder: unconditional.tiny(),
            draw=lambda pipe: unconditional.drawn(pipe, eta=1.0),
            **UNCONDITIONAL,
        ),
    )
}
