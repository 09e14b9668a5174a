"""`SanaPipeline` (1.0, 1.5) as a `Diffusion`: a rectified flow over the latents of a deep-compression VAE, told of a
text by Gemma."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dav_ray.diffusion.pipelines.flow import FlowModel
from dav_ray.diffusion.pipelines.latents import Embedding, usual


class Sana(FlowModel):
    """`Diffusion` over latents [B, C, H, W] of a rectified flow, in exactly the size that is asked for."""

    pipeline = "SanaPipeline"

    @property
    def event_shape(self) -> tuple[int, int, int]:
        return self._parts.transformer.config.in_channels, *self.latent_side

    def embed(self, prompt: str) -> Embedding:
        """Of the text behind the pipeline's own instruction."""
        return embedded(
            self._parts, prompt, usual(self._parts, "complex_human_instruction"), self._device, **self.longest()
        )

    def embed_none(self, negative_prompt: str | None) -> Embedding:
        """Without the instruction."""
        return embedded(self._parts, negative_prompt or "", None, self._device, **self.longest())

    def output(self, network: Any, x: Tensor, t: Tensor, embedded: Embedding) -> Tensor:
        said = network(
            hidden_states=x,
            timestep=self.schedule.timesteps.to(self._device)[t] * self._parts.transformer.config.timestep_scale,
            encoder_hidden_states=embedded["text"],
            encoder_attention_mask=embedded["mask"],
        ).sample
        return said[:, : x.shape[1]]  # without the variance that some networks say, too


def embedded(
    pipe: Any, text: str, instruction: Sequence[str] | None, device: torch.device, **longest: int
) -> Embedding:
    """The text's last [tokens, D] behind an instruction, and which of them are no padding [tokens]. longest: maybe the
    `max_sequence_length`."""
    words = {"device": device, "complex_human_instruction": instruction, **longest}
    if "do_classifier_free_guidance" in inspect.signature(pipe.encode_prompt).parameters:
        words["do_classifier_free_guidance"] = False
    found, mask, *_ = pipe.encode_prompt(text, **words)
    return {"text": found[0], "mask": mask[0]}
