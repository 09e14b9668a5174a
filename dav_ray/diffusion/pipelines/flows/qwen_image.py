"""`QwenImagePipeline` as a `Diffusion`: a rectified flow over packed latents, told of a text by Qwen 2.5 VL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dav_ray.diffusion.noise import Draws
from dav_ray.diffusion.pipelines.flow import FlowModel
from dav_ray.diffusion.pipelines.latents import Embedding, usual
from dav_ray.diffusion.policy_network import PolicyNetwork


class QwenImage(FlowModel):
    """`Diffusion` over [B, tokens, 4 C]: each token has 2 x 2 places of the latents, row by row. As in the pipeline,
    guidance takes a scale above 1 and a negative prompt; without one there is none."""

    pipeline = "QwenImagePipeline"
    hands_sigmas = True

    @property
    def event_shape(self) -> tuple[int, int]:
        height, width = self.latent_side
        return (height // 2) * (width // 2), self._parts.transformer.config.in_channels

    @property
    def guides(self) -> bool:
        return self._guidance > 1 and self._negative is not None

    def guided(self, free: Tensor, conditional: Tensor) -> Tensor:
        """Classifier-free guidance, then each token as long as the conditional output's."""
        combined = super().guided(free, conditional)
        return combined * (conditional.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))

    def mu(self, steps: int) -> float:
        return self.linear_mu(self.event_shape[0])

    def prior(self, conditions: Sequence[str], rng: Draws) -> Tensor:
        """Drawn as latents and then packed: a seed gives the noise that it gives the pipeline."""
        shape = (self.event_shape[1] // 4, *self.latent_side)
        drawn = rng.normal((1, *shape))
        return self._parts._pack_latents(drawn, len(drawn), *shape).to(self._device)

    def embed(self, prompt: str) -> Embedding:
        """The text's [tokens, D], as many tokens as it has."""
        # encode_prompt would take more of them than the pipeline's call does
        longest = {"max_sequence_length": usual(self._parts, "max_sequence_length"), **self.longest()}
        text, _ = self._parts.encode_prompt(prompt, device=self._device, **longest)
        return {"text": text[0]}

    def _batch(self, found: Sequence[Embedding], dtype: torch.dtype) -> Embedding:
        """Texts padded to the longest, and which of the tokens are text."""
        texts = [one["text"].to(dtype) for one in found]
        mask = pad_sequence([torch.ones(len(text), dtype=torch.long, device=self._device) for text in texts], True)
        return {"text": pad_sequence(texts, True), "mask": mask}

    def output(self, network: Any, x: Tensor, t: Tensor, embedded: Embedding) -> Tensor:
        height, width = self.latent_side
        return network(
            hidden_states=x,
            timestep=self.schedule.timesteps.to(x)[t] / 1000,
            encoder_hidden_states=embedded["text"],
            encoder_hidden_states_mask=None if embedded["mask"].all() else embedded["mask"],
            img_shapes=[[(1, height // 2, width // 2)]] * len(x),
        ).sample

    def unpacked(self, x_0: Tensor) -> Tensor:
        """With a dimension for frames, of which there is one: [B, C, 1, H, W]."""
        return self._parts._unpack_latents(x_0, self.height, self.width, self._parts.vae_scale_factor)

    def latents(self, x_0: Tensor) -> Tensor:
        config = self._parts.vae.config
        mean, std = (
            x_0.new_tensor(numbers).reshape(1, -1, 1, 1, 1) for numbers in (config.latents_mean, config.latents_std)
        )
        return self.unpacked(x_0) * std + mean

    def pixels(self, vae: Any, latents: Tensor) -> Tensor:
        return super().pixels(vae, latents)[:, :, 0]

    def compile(self) -> None:
        """The network and the decoder, whose three-dimensional convolutions know no channels-last format."""
        PolicyNetwork.compile(self)
        self._parts.vae.decoder = torch.compile(self._parts.vae.decoder)
