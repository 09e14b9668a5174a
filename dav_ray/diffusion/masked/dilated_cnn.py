"""The dilated CNN of the DNA benchmark (Stark et al. 2024; Gosai enhancers in DRAKES): p(x_0 | x_t) for every position.

Parameter names and their order are those of the published checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

DILATIONS = (1, 1, 4, 16, 64)
FOURIER_SCALE = 30.0


class FourierFeatures(nn.Module):
    """sin and cos of 2 pi W t with fixed random W; [B] -> [B, dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(dim // 2) * FOURIER_SCALE, requires_grad=False)

    def forward(self, t: Tensor) -> Tensor:
        angle = 2 * math.pi * t.unsqueeze(1) * self.W
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


class Dense(nn.Module):
    """A linear layer under the name that the checkpoints give it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x).unsqueeze(-1)  # the same at every position


class DilatedCNN(nn.Module):
    """tokens: V+1, the mask included; stacks: layers of each dilation; classes: of the optional class condition, with
    one index more (`classes`) for none."""

    fixed = ("time_embedder.0.W",)  # parameters that are never trained

    @classmethod
    def sizes(cls, state: Mapping[str, Tensor], classes: int) -> dict[str, int]:
        """The constructor's arguments, as a state dict has them. ValueError if it can't be this network's."""
        first, layers = state.get("linear.weight"), 0
        if first is None or first.ndim != 3:
            raise ValueError("has no linear.weight [hidden, tokens, kernel]; allowed: the dilated CNN")
        while f"convs.{layers}.weight" in state:
            layers += 1
        hidden, tokens, kernel = first.shape
        if layers == 0 or layers % len(DILATIONS) or kernel % 2 == 0:
            raise ValueError(
                f"has {layers} convolutions of width {kernel}; allowed: a multiple of {len(DILATIONS)}, of odd width"
            )
        stacks = layers // len(DILATIONS)
        return {"tokens": tokens, "hidden": hidden, "stacks": stacks, "kernel": kernel, "classes": classes}

    def __init__(
        self, tokens: int, hidden: int = 128, stacks: int = 4, kernel: int = 9, classes: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.tokens, self.classes = tokens, classes
        self.settings = {
            "tokens": tokens,
            "hidden": hidden,
            "stacks": stacks,
            "kernel": kernel,
            "classes": classes,
            "dropout": dropout,
        }
        half = (kernel - 1) // 2
        dilations = [d for d in DILATIONS for _ in range(stacks)]
        self.linear = nn.Conv1d(tokens, hidden, kernel, padding=half)
        self.time_embedder = nn.Sequential(FourierFeatures(hidden), nn.Linear(hidden, hidden))
        self.convs = nn.ModuleList(nn.Conv1d(hidden, hidden, kernel, dilation=d, padding=half * d) for d in dilations)
        self.time_layers = nn.ModuleList(Dense(hidden) for _ in dilations)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in dilations)
        self.final_conv = nn.Sequential(nn.Conv1d(hidden, hidden, 1), nn.ReLU(), nn.Conv1d(hidden, tokens, 1))
        self.dropout = nn.Dropout(dropout)
        self.checkpointing = False
        if classes:
            self.cls_embedder = nn.Embedding(classes + 1, hidden)
            self.cls_layers = nn.ModuleList(Dense(hidden) for _ in dilations)

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """x [B, L] tokens or [B, L, V+1] one-hot (relaxed or not), sigma [B], label [B] int64 -> logits [B, L, V+1]."""
        onehot = x if x.ndim == 3 else F.one_hot(x, self.tokens).to(self.linear.weight)
        time = F.relu(self.time_embedder(sigma))
        state = F.relu(self.linear(onehot.transpose(1, 2)))
        again = self.checkpointing and torch.is_grad_enabled()
        for i in range(len(self.convs)):
            inputs = i, state, time, label
            state = checkpoint(self._layer, *inputs, use_reentrant=False) if again else self._layer(*inputs)
        return self.final_conv(state).transpose(1, 2)

    def enable_gradient_checkpointing(self) -> None:
        """Hold each layer's input alone for the backward pass, which computes the rest again."""
        self.checkpointing = True

    def _layer(self, i: int, state: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
        h = self.dropout(state) + self.time_layers[i](time)
        if self.classes and label is not None:
            h = h + self.cls_layers[i](self.cls_embedder(label))
        return state + F.relu(self.convs[i](self.norms[i](h.transpose(1, 2)).transpose(1, 2)))
