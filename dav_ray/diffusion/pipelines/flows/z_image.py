"""`ZImagePipeline` (Z-Image, Z-Image-Turbo) as a `Diffusion`: a rectified flow with a Qwen3 text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dav_ray.diffusion.pipelines.flow import FlowModel
from dav_ray.diffusion.pipelines.latents import Embedding


class ZImage(FlowModel):
    """`Diffusion` over latents [B, C, H, W]. The network's time is that of the data, 1 - s, and so is the sign of its
    output."""

    pipeline = "ZImagePipeline"
    hands_sigmas = True

    @property
    def event_shape(self) -> tuple[int, int, int]:
        return self._parts.transformer.in_channels, *self.latent_side

    @property
    def guides(self) -> bool:
        return self._guidance > 0

    def guided(self, free: Tensor, conditional: Tensor) -> Tensor:
        """The pipeline's scale counts from the conditional output: e_c + s (e_c - e_0)."""
        return conditional + self._guidance * (conditional - free)

    def sigmas(self, steps: int) -> list[float]:
        from diffusers.pipelines.z_image.pipeline_z_image import get_default_z_image_sigmas

        return get_default_z_image_sigmas(steps)

    def mu(self, steps: int) -> float:
        height, width = self.latent_side
        return self.linear_mu((height // 2) * (width // 2))

    def embed(self, prompt: str) -> Embedding:
        """The text's [tokens, D], as many tokens as it has."""
        found, _ = self._parts.encode_prompt(
            prompt, device=self._device, do_classifier_free_guidance=False, **self.longest()
        )
        return {"text": found[0]}

    def _batch(self, found: Sequence[Embedding], dtype: torch.dtype) -> Embedding:
        """Texts padded to the longest, and how many tokens each has."""
        texts = [one["text"].to(dtype) for one in found]
        return {"text": pad_sequence(texts, batch_first=True), "tokens": torch.tensor([len(text) for text in texts])}

    def output(self, network: Any, x: Tensor, t: Tensor, embedded: Embedding) -> Tensor:
        tokens = embedded["tokens"].tolist()
        texts = [text[:count] for text, count in zip(embedded["text"], tokens, strict=True)]
        times = (1000 - self.schedule.timesteps.to(self._device)[t]) / 1000
        frames = list(x.unsqueeze(2).unbind())
        return -torch.stack(network(frames, times, texts).sample).squeeze(2)
