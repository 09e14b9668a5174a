"""Plain sampling of a diffusion model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dav_ray.diffusion.base import Diffusion, Kernel
from dav_ray.diffusion.noise import Noise

Observer = Callable[[Tensor, int, Kernel], None]  # (x_t, t, kernel at x_t)


@torch.no_grad()
def ancestral(diffusion: Diffusion, conditions: Sequence[str], noise: Noise, observe: Observer | None = None) -> Tensor:
    """Plain sampling, T network evaluations each: states [T+1, B, *event], x_T first."""
    x = diffusion.prior(conditions, noise.at(diffusion.steps))
    states = [x]
    for t in range(diffusion.steps, 0, -1):
        kernel = diffusion.predict(x, t, conditions).kernel
        if observe is not None:
            observe(x, t, kernel)
        x = kernel.sample(1, noise.at(t - 1))[:, 0]
        states.append(x)
    return torch.stack(states)
