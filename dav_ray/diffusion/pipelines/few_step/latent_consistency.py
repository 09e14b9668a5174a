"""`LatentConsistencyModelPipeline` as a `Diffusion`: Stable Diffusion distilled to a few steps (arXiv 2310.04378)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dav_ray.diffusion.gaussian import GaussianSteps
from dav_ray.diffusion.noise_rules import Level
from dav_ray.diffusion.pipelines.latents import Embedding, LatentModel


class LatentConsistency(LatentModel):
    """`Diffusion` over latents [B, 4, H, W]. The guidance scale is one of the network's inputs."""

    pipeline = "LatentConsistencyModelPipeline"
    component = "unet"

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
        super().__init__(parts, consistency_steps(parts.scheduler, steps, eta, noise), **options)
        self.height, self.width = height, width

    @property
    def event_shape(self) -> tuple[int, int, int]:
        scale = self._parts.vae_scale_factor
        return self._parts.unet.config.in_channels, self.height // scale, self.width // scale

    @property
    def guides(self) -> bool:
        return False

    def embed(self, prompt: str) -> Embedding:
        """The text's [tokens, D]."""
        text, _ = self._parts.encode_prompt(prompt, self._device, 1, False)
        return {"text": text[0]}

    def output(self, network: Any, x: Tensor, t: Tensor, embedded: Embedding) -> Tensor:
        return network(
            x,
            self.schedule.timesteps.to(self._device)[t],
            timestep_cond=self._told().to(x).expand(len(x), -1),
            encoder_hidden_states=embedded["text"],
        ).sample

    def _told(self) -> Tensor:
        """What the network is told of the guidance scale, [1, D]: the authors' own is smaller by one."""
        width = self._parts.unet.config.time_cond_proj_dim
        return self._parts.get_guidance_scale_embedding(torch.tensor([self._guidance - 1]), embedding_dim=width)


def consistency_steps(scheduler: Any, steps: int, eta: float | Sequence[float], rule: str) -> GaussianSteps:
    """T of an `LCMScheduler`'s steps: the last one ends at the clean state. The guess of x_0 is c_out x0_hat + c_skip
    x_t, so that it would be x_t itself at time 0 (its section 4.1)."""
    scheduler.set_timesteps(steps)
    tau = scheduler.timesteps.tolist()[::-1]
    bars = [float(scheduler.alphas_cumprod.double()[time]) for time in tau]
    levels = [Level(1.0, 0.0), *(Level(bar**0.5, (1 - bar) ** 0.5) for bar in bars)]
    skip, scale = zip(
        *(scheduler.get_scalings_for_boundary_condition_discrete(time) for time in (0, *tau)), strict=True
    )
    return GaussianSteps.of(
        torch.tensor([0, *tau]),
        levels,
        rule,
        eta,
        prediction=scheduler.config.prediction_type,
        boundary=(torch.tensor(skip), torch.tensor(scale)),
    )
