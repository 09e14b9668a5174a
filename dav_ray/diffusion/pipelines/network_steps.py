"""What pipelines over latents and over pixels share as a `Diffusion`: one network, called at each step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dav_ray.diffusion.base import Prediction, Room
from dav_ray.diffusion.gaussian import ContinuousStates
from dav_ray.diffusion.policy_network import PolicyNetwork


class NetworkSteps(ContinuousStates, PolicyNetwork):
    """A subclass sets `schedule`, `_room` (states per call) and `_dtype` (of the network's weights)."""

    timeless = False
    _room: Room
    _dtype: torch.dtype

    @abstractmethod
    def _evaluate(self, network: Any, x: Tensor, t: Tensor, conditions: Sequence[str]) -> Tensor:
        """The network's output [B, *event] float32 at states x [B, *event] and steps t [B], guidance included."""

    def train_all_weights(self) -> None:
        super().train_all_weights()
        self._network.float()
        self._frozen.float()
        self._dtype = torch.float32

    def predict(
        self, x_t: Tensor, t: int | Tensor, conditions: Sequence[str], *, reference: bool = False
    ) -> Prediction:
        x_t = x_t.to(self._device)
        steps = (t if isinstance(t, Tensor) else torch.full((len(x_t),), t)).to(self._device)
        output = self._evaluated(
            len(x_t),
            self._room,
            lambda network, rows: self._evaluate(network, x_t[rows], steps[rows], conditions[rows]),
            reference=reference,
        )
        kernel, x0_hat = self.schedule.kernel(x_t, output, steps)
        return Prediction(kernel, x0_hat)

    def move(self, prediction: Prediction, t: int) -> Prediction:
        raise TypeError("what the network predicts depends on the step")
