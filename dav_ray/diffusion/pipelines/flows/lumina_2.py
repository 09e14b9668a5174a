"""`Lumina2Pipeline` (Lumina-Image 2.0) as a `Diffusion`: a rectified flow, told of a text by Gemma 2."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dav_ray.diffusion.pipelines.flow import FlowModel
from dav_ray.diffusion.pipelines.latents import Embedding


class Lumina2(FlowModel):
    """`Diffusion` over latents [B, C, H, W]. The network's time is that of the data, 1 - s, and so is the sign of its
    output."""

    pipeline = "Lumina2Pipeline"
    hands_sigmas = True

    @property
    def event_shape(self) -> tuple[int, int, int]:
        return self._parts.transformer.config.in_channels, *self.latent_side

    def mu(self, steps: int) -> float:
        """The pipeline takes the number of channels for that of tokens, and its images are drawn so."""
        return self.linear_mu(self.event_shape[0])

    def guided(self, free: Tensor, conditional: Tensor) -> Tensor:
        """Each row of the latents keeps the length that it has in the conditional output."""
        mixed = super().guided(free, conditional)
        return mixed * (conditional.norm(dim=-1, keepdim=True) / mixed.norm(dim=-1, keepdim=True))

    def embed(self, prompt: str) -> Embedding:
        """Of the text behind the pipeline's own instruction: [tokens, D], and which tokens are no padding [tokens]."""
        text, mask, *_ = self._parts.encode_prompt(
            prompt, do_classifier_free_guidance=False, device=self._device, **self.longest()
        )
        return {"text": text[0], "mask": mask[0]}

    def embed_none(self, negative_prompt: str | None) -> Embedding:
        """Without the instruction."""
        text, mask = self._parts._get_gemma_prompt_embeds(negative_prompt or "", device=self._device, **self.longest())
        return {"text": text[0], "mask": mask[0]}

    def output(self, network: Any, x: Tensor, t: Tensor, embedded: Embedding) -> Tensor:
        noised = self.schedule.timesteps.to(self._device)[t] / self._parts.scheduler.config.num_train_timesteps
        return -network(
            hidden_states=x,
            timestep=1 - noised,
            encoder_hidden_states=embedded["text"],
            encoder_attention_mask=embedded["mask"],
        ).sample
