"""`StableDiffusionPipeline` (1.x, 2.x) as a `Diffusion`: a UNet over a VAE's latents, one text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dav_ray.diffusion.noise import Draws
from dav_ray.diffusion.pipelines.ddim import DDIMSchedule
from dav_ray.diffusion.pipelines.files import load_draft_vae, load_pipeline
from dav_ray.diffusion.pipelines.latents import Embedding, LatentModel


@dataclass(frozen=True)
class Parts:
    """The parts of a pipeline that sampling needs."""

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any  # DDIMScheduler
    draft_vae: Any = None  # AutoencoderTiny

    @classmethod
    def load(cls, path: str, *, draft_vae: str | None = None, dtype: str = "float32", **options: Any) -> Parts:
        """From folders or hub ids; options as in `load_pipeline`."""
        pipe = load_pipeline(path, dtype=dtype, **options)
        draft = load_draft_vae(draft_vae, pipe.vae, dtype) if draft_vae else None
        return cls(pipe.unet, pipe.vae, pipe.text_encoder, pipe.tokenizer, pipe.scheduler, draft)


class StableDiffusion(LatentModel):
    """`Diffusion` over latents [B, C, H, W]."""

    pipeline = "StableDiffusionPipeline"
    component = "unet"

    def __init__(
        self,
        parts: Parts,
        *,
        steps: int,
        eta: float | Sequence[float] = 1.0,
        noise: str = "ddim",
        height: int | None = None,
        width: int | None = None,
        **options: Any,
    ) -> None:
        """height, width: of the images; None: those of the pipeline; options: those of `LatentModel`."""
        super().__init__(parts, DDIMSchedule(parts.scheduler, steps, eta, noise), **options)
        self._size = height, width

    @property
    def event_shape(self) -> tuple[int, int, int]:
        size = self._network.config.sample_size
        own = (size, size) if isinstance(size, int) else size
        scale = 2 ** (len(self._parts.vae.config.block_out_channels) - 1)
        height, width = (pixels // scale if pixels else side for pixels, side in zip(self._size, own, strict=True))
        return self._network.config.in_channels, height, width

    def prior(self, conditions: Sequence[str], rng: Draws) -> Tensor:
        return super().prior(conditions, rng) * self._parts.scheduler.init_noise_sigma

    def embed(self, prompt: str) -> Embedding:
        """The text's [tokens, D]."""
        tokenizer, encoder = self._parts.tokenizer, self._parts.text_encoder
        ids = tokenizer(
            prompt,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return {"text": encoder(ids.to(self._device))[0][0].to(self._dtype)}

    def output(self, network: Any, x: Tensor, t: Tensor, embedded: Embedding) -> Tensor:
        timesteps = self.schedule.timesteps.to(self._device)[t]
        return network(x, timesteps, encoder_hidden_states=embedded["text"]).sample
