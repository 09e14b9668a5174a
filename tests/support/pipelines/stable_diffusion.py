"""`StableDiffusionPipeline` with tiny random weights, and what its own call draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.support.oracle import Recorded, recorded

STEPS, PROMPTS = 4, ["a cat", "two dogs"]


def begin() -> Tensor:
    return torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))


def drawn(guidance: float = 3.0) -> Callable[[Any], Recorded]:
    """Of `tests.support.tiny.tiny_pipeline`."""
    words = {"num_inference_steps": STEPS, "guidance_scale": guidance, "eta": 0.0}
    return lambda pipe: recorded(pipe, PROMPTS, begin(), **words)
