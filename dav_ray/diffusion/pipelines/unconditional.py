"""`DDPMPipeline` and `DDIMPipeline` as a `Diffusion`: a UNet over pixels in [-1, 1], told of nothing but the step."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dav_ray.diffusion.base import Room
from dav_ray.diffusion.noise import Draws
from dav_ray.diffusion.pipelines.ddim import DDIMSchedule
from dav_ray.diffusion.pipelines.files import WEIGHTS
from dav_ray.diffusion.pipelines.network_steps import NetworkSteps


class Unconditional(NetworkSteps):
    """`Diffusion` over images [B, C, H, W] of one channel or three. Its weights are frozen."""

    def __init__(
        self,
        pipe: Any,
        *,
        steps: int,
        eta: float | Sequence[float] = 1.0,
        noise: str = "ddim",
        micro_batch: int = 128,
        device: str | torch.device = "cpu",
        autocast: str = "float32",
        channels_last: bool = False,
    ) -> None:
        """pipe: its scheduler is a `DDIMScheduler`; steps = T; eta, noise: as of `DDIMSchedule`; micro_batch: states
        per call."""
        unet = pipe.unet.requires_grad_(False).eval().to(device)
        if channels_last:
            unet.to(memory_format=torch.channels_last)
        super().__init__(unet, device=device, autocast=autocast)
        self.steps, self.schedule = steps, DDIMSchedule(pipe.scheduler, steps, eta, noise)
        self.rooms = (self._room,) = (Room(micro_batch),)
        self._dtype, self._start = unet.dtype, pipe.scheduler.init_noise_sigma
        size = unet.config.sample_size
        self.event_shape = (unet.config.in_channels, *((size, size) if isinstance(size, int) else size))

    # -- what is trained ------------------------------------------------------------------------------------------

    def add_adapters(self, rank: int, alpha: float, targets: Sequence[str], seed: int) -> None:
        super().add_adapters(rank, alpha, targets, seed)
        for parameter in self._network.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # adapters stay in full precision beside half weights

    @property
    def policy_file(self) -> str:
        return super().policy_file if self.adapted else f"unet/{WEIGHTS}"

    def write_policy(self, folder: Path) -> None:
        """Adapters by name, which no pipeline of this kind loads by itself, or the network for `from_pretrained`."""
        if self.adapted:
            super().write_policy(folder)
        else:
            # one file, whatever its size: `policy_file`
            self._network.save_pretrained(folder / "unet", max_shard_size=sys.maxsize)

    # -- calls ----------------------------------------------------------------------------------------------------

    def prior(self, conditions: Sequence[str], rng: Draws) -> Tensor:
        return rng.normal(self.event_shape).to(self._device) * self._start

    def decode(self, x_0: Tensor, conditions: Sequence[str], t: int = 0) -> Tensor:
        """Images [B, 3, H, W] float32 in [0, 1]."""
        return (x_0.float() / 2 + 0.5).clamp(0, 1).expand(-1, 3, -1, -1)

    def _evaluate(self, network: Any, x: Tensor, t: Tensor, conditions: Sequence[str]) -> Tensor:
        """[B, *event] float32, without the variance that some networks say, too."""
        times = self.schedule.timesteps.to(self._device)[t]
        with self._precision():
            said = network(x.to(torch.float32 if self._exact else self._dtype), times).sample
        return said[:, : x.shape[1]].float()
