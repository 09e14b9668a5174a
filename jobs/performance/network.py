"""The bare network, called with states of the right shape: what no search and no training can be faster than."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dav_ray.config.families.base import Runtime
from dav_ray.config.families.table import family_of
from jobs.performance.workloads import Workload


def bare(work: Workload) -> Any:
    """The model without adapters: what the network of a search is once they are merged into its weights."""
    search = work.config.search
    return family_of(work.config.model).build(work.config, Runtime(search.micro_batch, work.device, search.precision))


def forward(work: Workload, size: int, policy: Any = None) -> Callable[[], Tensor]:
    """One evaluation of `size` states: guidance as two passes in one batch. policy: the network, if it is another one
    than the workload's."""
    policy = policy or work.diffusion.trainable()
    if family_of(work.config.model).discrete:
        tokens = torch.randint(0, 5, (size, work.diffusion.length), device=work.device)  # type: ignore[attr-defined]
        return lambda: policy(tokens, torch.zeros(size, device=work.device), None)
    passes = 2 if work.config.search.guidance_scale > 1 else 1
    unet = policy.config
    dtype = policy.dtype
    x = torch.randn(passes * size, unet.in_channels, unet.sample_size, unet.sample_size, device=work.device)
    tokens = work.diffusion._parts.tokenizer.model_max_length  # type: ignore[attr-defined]
    text = torch.randn(passes * size, tokens, unet.cross_attention_dim, device=work.device)
    steps = torch.randint(0, 1000, (passes * size,), device=work.device)
    x, text = x.to(dtype), text.to(dtype)
    return lambda: policy(x, steps, encoder_hidden_states=text).sample


def decoding(work: Workload, size: int, vae: Any) -> Callable[[], Tensor]:
    """Decoding of `size` states."""
    x = torch.randn(size, *work.diffusion.event_shape, device=work.device).to(vae.dtype)  # type: ignore[attr-defined]
    return lambda: vae.decode(x).sample


def training_step(work: Workload, size: int) -> Callable[[], None]:
    """Forward and backward of `size` states, and the reference's forward where the objective needs it."""
    run, policy = forward(work, size), work.diffusion.trainable()

    def step() -> None:
        if work.config.mstep.kl > 0:
            with torch.no_grad(), work.diffusion._reference():  # type: ignore[attr-defined]
                run()
        run().float().square().mean().backward()
        policy.zero_grad(set_to_none=True)

    return step
