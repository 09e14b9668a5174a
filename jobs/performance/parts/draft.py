"""A small VAE that decodes early guesses, fitted to what the pipeline's own makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dav_ray.diffusion.noise import KeyedNoise
from jobs.performance.workloads import Workload

STEPS, BATCH, WIDTH = 400, 64, 8


def draft_vae(work: Workload, folder: Path) -> Path:
    """An `AutoencoderTiny` for the workload's VAE, in a folder of its own; made once."""
    out = folder / f"{work.name}-draft"
    if not out.exists():
        guesses = _guesses(work)
        with torch.no_grad():
            images = 2 * work.diffusion.decode(guesses, [""] * len(guesses)) - 1
        _fitted(guesses, images).save_pretrained(out)
    return out


@torch.no_grad()
def _guesses(work: Workload) -> Tensor:
    """x0_hat along plain samples, [N, *latent]."""
    conditions = [work.config.prompts[i % len(work.config.prompts)] for i in range(2 * BATCH)]
    noise, found = KeyedNoise(2, 0, range(len(conditions))), []
    x = work.diffusion.prior(conditions, noise.at(work.diffusion.steps))
    for t in range(work.diffusion.steps, 0, -1):
        prediction = work.diffusion.predict(x, t, conditions)
        found.append(prediction.x0_hat)
        x = prediction.kernel.sample(1, noise.at(t - 1))[:, 0]
    return torch.cat(found)


def _fitted(latents: Tensor, images: Tensor) -> Any:
    """Its decoder is fitted by the mean squared error of images [N, 3, H, W] in [-1, 1]; its encoder is not."""
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    levels = (images.shape[-1] // latents.shape[-1]).bit_length()
    torch.manual_seed(0)
    draft: Any = AutoencoderTiny(
        latent_channels=latents.shape[1],
        encoder_block_out_channels=(WIDTH,) * levels,
        decoder_block_out_channels=(WIDTH,) * levels,
        num_encoder_blocks=(1,) * levels,
        num_decoder_blocks=(1,) * levels,
    )
    optimizer = torch.optim.Adam(draft.decoder.parameters(), lr=3e-3)
    for _ in range(STEPS):
        rows = torch.randint(len(latents), (BATCH,))
        loss = (draft.decode(latents[rows]).sample - images[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return draft
