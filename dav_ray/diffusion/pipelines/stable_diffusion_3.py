"""`StableDiffusion3Pipeline` (3, 3.5) as a `Diffusion`: a rectified flow with two CLIP encoders and, maybe, T5."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dav_ray.diffusion.pipelines.flow import FlowModel
from dav_ray.diffusion.pipelines.latents import Embedding


class StableDiffusion3(FlowModel):
    """`Diffusion` over latents [B, C, H, W]."""

    pipeline = "StableDiffusion3Pipeline"

    @property
    def event_shape(self) -> tuple[int, int, int]:
        return self._network.config.in_channels, *self.latent_side

    def mu(self, steps: int) -> float:
        height, width = self.latent_side
        side = self._parts.transformer.config.patch_size
        return self.linear_mu((height // side) * (width // side))

    def embed(self, prompt: str) -> Embedding:
        """The text's [tokens, D], and the pooled [P]."""
        text, _, pooled, _ = self._parts.encode_prompt(
            prompt, None, None, device=self._device, do_classifier_free_guidance=False, **self.longest()
        )
        return {"text": text[0], "pooled": pooled[0]}

    def output(self, network: Any, x: Tensor, t: Tensor, embedded: Embedding) -> Tensor:
        return network(
            hidden_states=x,
            timestep=self.schedule.timesteps.to(self._device)[t],
            encoder_hidden_states=embedded["text"],
            pooled_projections=embedded["pooled"],
        ).sample
