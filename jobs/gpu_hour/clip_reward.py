"""A reward of the size of CLIP's image encoder, with random weights: what a learned reward costs beside the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jobs.gpu_hour.models import SD15, TINY


class ClipSized:
    """The mean of the image's embedding. Half precision on a GPU."""

    differentiable = False

    def __init__(self, tiny: bool = False) -> None:
        from transformers import CLIPVisionConfig, CLIPVisionModel

        self._side = (TINY if tiny else SD15).vision["image_size"]
        self._config = CLIPVisionConfig(**(TINY if tiny else SD15).vision)
        self._class: Any = CLIPVisionModel
        self.place_on("cpu")

    def place_on(self, device: str) -> None:
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        with torch.device(device), torch.random.fork_rng():
            torch.manual_seed(0)
            self._network = self._class(self._config).to(dtype).eval()

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        weight = next(self._network.parameters())
        pixels = torch.nn.functional.interpolate(samples.to(weight.device), self._side, mode="bilinear")
        return self._network(pixels.to(weight.dtype)).pooler_output.float().mean(1).cpu()
