"""`SanaSprintPipeline` as a `Diffusion`: Sana distilled to one to four steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dav_ray.diffusion.gaussian import GaussianSteps
from dav_ray.diffusion.noise_rules import Level
from dav_ray.diffusion.pipelines.flows.sana import embedded
from dav_ray.diffusion.pipelines.latents import Embedding, LatentModel, usual


class SanaSprint(LatentModel):
    """`Diffusion` over latents [B, C, H, W] in units of the data's standard deviation, in one to four steps.

    x_t = cos(a) x_0 + sin(a) eps at the angle a of step t (TrigFlow, arXiv 2410.11081). The network was a rectified
    flow's, and is still told x_t / (cos a + sin a) at sigma = sin a / (cos a + sin a), and says eps - x_0 (arXiv
    2503.09641, section 3.1). The guidance scale is one of its inputs.
    """

    pipeline = "SanaSprintPipeline"

    def __init__(
        self,
        parts: Any,
        *,
        steps: int,
        eta: float | Sequence[float] = 1.0,
        noise: str = "renoise",
        height: int,
        width: int,
        **options: Any,
    ) -> None:
        """parts: the pipeline; height, width: of the images; options: those of `LatentModel`."""
        self.height, self.width = height, width
        super().__init__(parts, angular_steps(parts, steps, eta, noise), **options)

    @property
    def event_shape(self) -> tuple[int, int, int]:
        scale = self._parts.vae_scale_factor
        return self._parts.transformer.config.in_channels, self.height // scale, self.width // scale

    @property
    def guides(self) -> bool:
        return False

    def embed(self, prompt: str) -> Embedding:
        """Of the text behind the pipeline's own instruction."""
        return embedded(
            self._parts, prompt, usual(self._parts, "complex_human_instruction"), self._device, **self.longest()
        )

    def output(self, network: Any, x: Tensor, t: Tensor, embedded: Embedding) -> Tensor:
        angle = self.schedule.timesteps.to(self._device)[t]
        scale = 1 / (angle.cos() + angle.sin())
        told = self._guidance * self._parts.transformer.config.guidance_embeds_scale
        return network(
            hidden_states=x * scale.reshape(-1, 1, 1, 1).to(x.dtype),
            timestep=angle.sin() * scale,
            guidance=torch.full_like(angle, told, dtype=x.dtype),
            encoder_hidden_states=embedded["text"],
            encoder_attention_mask=embedded["mask"],
        ).sample


def angular_steps(pipe: Any, steps: int, eta: float | Sequence[float], rule: str) -> GaussianSteps:
    """T steps between the T + 1 angles that the pipeline's call gives its `SCMScheduler`."""
    # the scheduler knows a middle for two steps alone
    middle = usual(pipe, "intermediate_timesteps") if steps == 2 else None
    pipe.scheduler.set_timesteps(steps, max_timesteps=usual(pipe, "max_timesteps"), intermediate_timesteps=middle)
    angles = pipe.scheduler.timesteps.cpu().flip(0)
    levels = [Level(float(a.cos()), float(a.sin())) for a in angles.double()]
    return GaussianSteps.of(angles, levels, rule, eta, prediction="flow_prediction")
