"""The steps of rectified-flow pipelines: x_s = (1 - s) x_0 + s eps, where a scheduler gives s at each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from dav_ray.diffusion.gaussian import GaussianSteps
from dav_ray.diffusion.noise_rules import Level
from dav_ray.diffusion.pipelines.latents import LatentModel


def flow_steps(
    scheduler: Any,
    steps: int,
    eta: float | Sequence[float],
    rule: str = "ddim",
    *,
    sigmas: Sequence[float] | None = None,
    mu: float | None = None,
) -> GaussianSteps:
    """T of a flow scheduler's steps, with the levels and times that its `set_timesteps` gives the pipeline.

    sigmas: what the pipeline hands over (None: nothing, then the scheduler's own); mu: the shift, where the scheduler's
    depends on the size of the image.
    """
    words: dict[str, Any] = {} if mu is None else {"mu": mu}
    if sigmas is None:
        scheduler.set_timesteps(steps, **words)
    else:
        scheduler.set_timesteps(sigmas=list(sigmas), **words)
    levels = [Level(1.0 - s, s) for s in scheduler.sigmas.double().tolist()]
    times = torch.cat([torch.zeros(1), scheduler.timesteps.float().cpu().flip(0)])
    return GaussianSteps.of(times, levels[::-1], rule, eta, prediction="flow_prediction")


class FlowModel(LatentModel):
    """`Diffusion` over the latents of a rectified flow, whose network says the velocity eps - x_0. The shape of its
    states follows from height and width in pixels."""

    hands_sigmas: ClassVar[bool] = False  # whether the pipeline gives its scheduler linspace(1, 1/T)

    def __init__(
        self,
        parts: Any,
        *,
        steps: int,
        eta: float | Sequence[float] = 1.0,
        noise: str = "ddim",
        height: int,
        width: int,
        **options: Any,
    ) -> None:
        """parts: the pipeline; height, width: of the images; options: those of `LatentModel`."""
        self._parts, self.height, self.width = parts, height, width
        sigmas = self.sigmas(steps) if self.hands_sigmas else None
        mu = self.mu(steps) if parts.scheduler.config.get("use_dynamic_shifting") else None
        schedule = flow_steps(parts.scheduler, steps, eta, noise, sigmas=sigmas, mu=mu)
        super().__init__(parts, schedule, **options)

    def sigmas(self, steps: int) -> list[float]:
        """What the pipeline gives its scheduler, where it does."""
        # in double precision, as numpy's: the scheduler rounds them, and what the network is told of time follows
        return torch.linspace(1.0, 1.0 / steps, steps, dtype=torch.float64).tolist()

    def mu(self, steps: int) -> float:
        """The shift of the scheduler for images of this size; asked where the scheduler's is dynamic."""
        raise ValueError(f"{type(self).__name__} has no rule for a dynamic shift")

    def linear_mu(self, tokens: int) -> float:
        """Linear in the number of image tokens, between two points that the scheduler names (FLUX's rule)."""
        config = self._parts.scheduler.config
        low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        start, end = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        return start + (end - start) * (tokens - low) / (high - low)

    @property
    def latent_side(self) -> tuple[int, int]:
        """Height and width of the latents."""
        scale = self._parts.vae_scale_factor
        return self.height // scale, self.width // scale
