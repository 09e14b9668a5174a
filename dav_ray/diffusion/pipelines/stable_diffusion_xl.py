"""`StableDiffusionXLPipeline` (base, Turbo, with LCM or DMD2 weights) as a `Diffusion`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dav_ray.diffusion.noise import Draws
from dav_ray.diffusion.pipelines.ddim import DDIMSchedule
from dav_ray.diffusion.pipelines.latents import Embedding, LatentModel


class StableDiffusionXL(LatentModel):
    """`Diffusion` over latents [B, 4, H, W]. The network is also told the size of the image: the one that is drawn."""

    pipeline = "StableDiffusionXLPipeline"
    component = "unet"

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
        """parts: the pipeline, whose scheduler is a `DDIMScheduler`; height, width: of the images; options: those of
        `LatentModel`."""
        super().__init__(parts, DDIMSchedule(parts.scheduler, steps, eta, noise), **options)
        self.height, self.width = height, width

    @property
    def event_shape(self) -> tuple[int, int, int]:
        scale = self._parts.vae_scale_factor
        return self._network.config.in_channels, self.height // scale, self.width // scale

    def prior(self, conditions: Sequence[str], rng: Draws) -> Tensor:
        return super().prior(conditions, rng) * self._parts.scheduler.init_noise_sigma

    def embed(self, prompt: str) -> Embedding:
        """The text's [tokens, D], the pooled [P], and the six numbers of the size."""
        text, _, pooled, _ = self._parts.encode_prompt(prompt, device=self._device, do_classifier_free_guidance=False)
        return {"text": text[0], "pooled": pooled[0], "size": self._size()}

    def embed_none(self, negative_prompt: str | None) -> Embedding:
        """Zeros without a negative prompt, where the pipeline says so."""
        if negative_prompt is not None or not self._parts.config.force_zeros_for_empty_prompt:
            return self.embed(negative_prompt or "")
        found = self.embed("")
        return {**found, "text": torch.zeros_like(found["text"]), "pooled": torch.zeros_like(found["pooled"])}

    def latents(self, x_0: Tensor) -> Tensor:
        config = self._parts.vae.config
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is None or std is None:
            return super().latents(x_0)
        shift, scale = (x_0.new_tensor(numbers).reshape(1, -1, 1, 1) for numbers in (mean, std))
        return x_0 * scale / config.scaling_factor + shift

    def output(self, network: Any, x: Tensor, t: Tensor, embedded: Embedding) -> Tensor:
        return network(
            x,
            self.schedule.timesteps.to(self._device)[t],
            encoder_hidden_states=embedded["text"],
            added_cond_kwargs={"text_embeds": embedded["pooled"], "time_ids": embedded["size"]},
        ).sample

    def _size(self) -> Tensor:
        """Original size, corner of the crop, target size."""
        size = (self.height, self.width)
        return torch.tensor([*size, 0, 0, *size], dtype=torch.float32, device=self._device)
