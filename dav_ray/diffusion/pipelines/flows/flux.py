"""`FluxPipeline` (FLUX.1 dev, schnell) as a `Diffusion`: a rectified flow over packed latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dav_ray.diffusion.noise import Draws
from dav_ray.diffusion.pipelines.flow import FlowModel
from dav_ray.diffusion.pipelines.latents import Embedding

DEV_TEXT, SCHNELL_TEXT = 512, 256  # tokens of T5 that a model was made for; its pipeline takes dev's for both


class Flux(FlowModel):
    """`Diffusion` over [B, tokens, 4 C]: each token has 2 x 2 places of the latents, row by row. dev is told the
    guidance scale, and schnell is not; neither takes a second pass."""

    pipeline = "FluxPipeline"
    hands_sigmas = True

    @property
    def event_shape(self) -> tuple[int, int]:
        height, width = self.latent_side
        return (height // 2) * (width // 2), self._parts.transformer.config.in_channels

    @property
    def guides(self) -> bool:
        return False

    def mu(self, steps: int) -> float:
        return self.linear_mu(self.event_shape[0])

    def prior(self, conditions: Sequence[str], rng: Draws) -> Tensor:
        """Drawn as latents and then packed: a seed gives the noise that it gives the pipeline."""
        shape = (self.event_shape[1] // 4, *self.latent_side)
        drawn = rng.normal(shape)
        return self._parts._pack_latents(drawn, len(drawn), *shape).to(self._device)

    def embed(self, prompt: str) -> Embedding:
        """T5's [tokens, D], and CLIP's pooled [P]."""
        tokens = DEV_TEXT if self._network.config.guidance_embeds else SCHNELL_TEXT
        longest = {"max_sequence_length": tokens, **self.longest()}
        text, pooled, _ = self._parts.encode_prompt(prompt, device=self._device, **longest)
        return {"text": text[0], "pooled": pooled[0]}

    def unpacked(self, x_0: Tensor) -> Tensor:
        return self._parts._unpack_latents(x_0, self.height, self.width, self._parts.vae_scale_factor)

    def output(self, network: Any, x: Tensor, t: Tensor, embedded: Embedding) -> Tensor:
        height, width = self.latent_side
        text = embedded["text"]
        told = torch.full((len(x),), self._guidance, device=x.device) if self._network.config.guidance_embeds else None
        return network(
            hidden_states=x,
            timestep=self.schedule.timesteps.to(x)[t] / 1000,
            guidance=told,
            pooled_projections=embedded["pooled"],
            encoder_hidden_states=text,
            txt_ids=x.new_zeros(text.shape[1], 3),
            img_ids=self._parts._prepare_latent_image_ids(len(x), height // 2, width // 2, x.device, x.dtype),
        ).sample
