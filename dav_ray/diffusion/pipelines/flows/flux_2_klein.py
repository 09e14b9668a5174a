"""`Flux2KleinPipeline` (FLUX.2 klein, distilled and base) as a `Diffusion`: a rectified flow over packed latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dav_ray.diffusion.noise import Draws
from dav_ray.diffusion.pipelines.flow import FlowModel
from dav_ray.diffusion.pipelines.latents import Embedding


class Flux2Klein(FlowModel):
    """`Diffusion` over [B, tokens, 4 C]: each token has 2 x 2 places of the latents, row by row, which the VAE's batch
    norm has scaled. A distilled model takes no guidance."""

    pipeline = "Flux2KleinPipeline"
    hands_sigmas = True

    @property
    def token_side(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        height, width = self.latent_side
        return height // 2, width // 2

    @property
    def event_shape(self) -> tuple[int, int]:
        rows, columns = self.token_side
        return rows * columns, self._parts.transformer.config.in_channels

    @property
    def guides(self) -> bool:
        return super().guides and not self._parts.config.is_distilled

    def mu(self, steps: int) -> float:
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        return compute_empirical_mu(self.event_shape[0], steps)

    def prior(self, conditions: Sequence[str], rng: Draws) -> Tensor:
        """Drawn as patches and then packed: a seed gives the noise that it gives the pipeline."""
        drawn = rng.normal((self.event_shape[1], *self.token_side))
        return self._parts._pack_latents(drawn).to(self._device)

    def embed(self, prompt: str) -> Embedding:
        """The text's [tokens, D]: three of the encoder's layers side by side."""
        text, _ = self._parts.encode_prompt(prompt, device=self._device, **self.longest())
        return {"text": text[0]}

    def unpacked(self, x_0: Tensor) -> Tensor:
        """The batch norm undone."""
        vae = self._parts.vae
        mean, variance = (numbers.view(1, -1, 1, 1).to(x_0) for numbers in (vae.bn.running_mean, vae.bn.running_var))
        patches = x_0.transpose(1, 2).unflatten(2, self.token_side)
        return self._parts._unpatchify_latents(patches * (variance + vae.config.batch_norm_eps).sqrt() + mean)

    def latents(self, x_0: Tensor) -> Tensor:
        return self.unpacked(x_0)

    def output(self, network: Any, x: Tensor, t: Tensor, embedded: Embedding) -> Tensor:
        text, patches = embedded["text"], torch.empty(1, 1, *self.token_side, device="meta")
        return network(
            hidden_states=x,
            timestep=self.schedule.timesteps.to(x)[t] / 1000,
            encoder_hidden_states=text,
            txt_ids=self._parts._prepare_text_ids(text[:1]).to(x.device),
            img_ids=self._parts._prepare_latent_ids(patches).to(x.device),
        ).sample
