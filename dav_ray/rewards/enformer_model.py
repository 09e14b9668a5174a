"""Enformer's architecture (Avsec et al. 2021, doi 10.1038/s41592-021-01252-x) as gReLU arranges it, for inference.

Parameters bear gReLU's names, so that its checkpoints load; dropout, which it has while it trains, is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

LETTERS = 4
MULTIPLE = 128  # widths of the convolutions are rounded to it
KINDS = 6  # of position features: exponential, central mask and gamma, each symmetric and antisymmetric

ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "relu": torch.relu,
    "elu": nn.functional.elu,
    "gelu": nn.functional.gelu,
    "softplus": nn.functional.softplus,
    "exp": torch.exp,
}
POOLS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "avg": lambda x: x.mean(2, keepdim=True),
    "max": lambda x: x.amax(2, keepdim=True),
}


class Layer(nn.Module):
    """One layer under the name `layer`, which is where gReLU keeps it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class AttentionPool(nn.Module):
    """Halves the length: of every two neighbours the mean, with weights that are learned per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_attn_logits = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, L] -> [B, C, ceil(L / 2)]; the last of an odd length stands alone."""
        odd = x.shape[2] % 2
        pairs = nn.functional.pad(x, (0, odd)).unflatten(2, (-1, 2))  # [B, C, L/2, 2]
        logits = self.to_attn_logits(pairs)
        if odd:
            absent = torch.zeros(pairs.shape[2:], dtype=torch.bool, device=x.device)
            absent[-1, 1] = True
            logits = logits.masked_fill(absent, -math.inf)
        return (pairs * logits.softmax(3)).sum(3)


class ConvBlock(nn.Module):
    """Normalisation, activation, convolution; `pooled`: then added to the input, and the length halved."""

    def __init__(self, channels: int, out: int, kernel: int, pooled: bool = False) -> None:
        super().__init__()
        self.norm = Layer(nn.BatchNorm1d(channels))
        self.conv = nn.Conv1d(channels, out, kernel, padding="same")
        self.pool = Layer(AttentionPool(out)) if pooled else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(gelu(self.norm(x)))
        return y if self.pool is None else self.pool(x + y)


class Attention(nn.Module):
    """Multi-head attention that knows relative positions (Transformer-XL's terms)."""

    def __init__(self, width: int, heads: int, key_width: int) -> None:
        super().__init__()
        self.heads, self.scale, self.features = heads, key_width**-0.5, width // heads
        self.to_q = nn.Linear(width, key_width * heads, bias=False)
        self.to_k = nn.Linear(width, key_width * heads, bias=False)
        self.to_v = nn.Linear(width, width // heads * heads, bias=False)
        self.to_out = nn.Linear(width // heads * heads, width)
        self.to_rel_k = nn.Linear(self.features, key_width * heads, bias=False)
        self.rel_content_bias = nn.Parameter(torch.zeros(1, heads, 1, key_width))
        self.rel_pos_bias = nn.Parameter(torch.zeros(1, heads, 1, key_width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, C] -> the same."""
        length = x.shape[1]
        queries = self._split(self.to_q(x)) * self.scale  # [B, H, L, K]
        keys, values = self._split(self.to_k(x)), self._split(self.to_v(x))
        shifts = self._split(self.to_rel_k(position_features(length, self.features, x.device))[None])
        content = (queries + self.rel_content_bias) @ keys.transpose(2, 3)
        by_shift = (queries + self.rel_pos_bias) @ shifts.transpose(2, 3)  # [B, H, L, 2 L - 1]
        place = torch.arange(length, device=x.device)
        position = by_shift[:, :, place[:, None], place - place[:, None] + length - 1]
        mixed = (content + position).softmax(3) @ values
        return self.to_out(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Dense(nn.Module):
    def __init__(self, width: int, out: int, normed: bool) -> None:
        super().__init__()
        self.norm = Layer(nn.LayerNorm(width)) if normed else None
        self.linear = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x if self.norm is None else self.norm(x))


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense1 = Dense(width, 2 * width, normed=True)
        self.dense2 = Dense(2 * width, width, normed=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense2(torch.relu(self.dense1(x)))


class TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int, key_width: int) -> None:
        super().__init__()
        self.norm = Layer(nn.LayerNorm(width))
        self.mha = Attention(width, heads, key_width)
        self.ffn = FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, C] -> the same."""
        x = x + self.mha(self.norm(x))
        return x + self.ffn(x)


class Blocks(nn.Module):
    """One after the other."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class Head(nn.Module):
    """What every place says about every task."""

    def __init__(self, channels: int, n_tasks: int) -> None:
        super().__init__()
        self.channel_transform = nn.ModuleDict({"conv": Layer(nn.Conv1d(channels, n_tasks, 1))})

    def forward(self, x: Tensor) -> Tensor:
        return self.channel_transform["conv"](x)


class Trunk(nn.Module):
    """Convolutions that halve the length n_conv times, attention over what is left, a wider last convolution."""

    def __init__(
        self, n_conv: int, channels: int, n_transformers: int, n_heads: int, key_len: int, crop_len: int
    ) -> None:
        super().__init__()
        widths = [channels // 2, *conv_widths(channels, n_conv)]
        stem = nn.Sequential(
            nn.Conv1d(LETTERS, widths[0], 15, padding="same"), ConvBlock(widths[0], widths[0], 1, pooled=True)
        )
        tower = [
            nn.Sequential(ConvBlock(last, width, 5), ConvBlock(width, width, 1, pooled=True))
            for last, width in zip(widths, widths[1:], strict=False)
        ]
        self.conv_tower = Blocks(stem, *tower)
        self.transformer_tower = Blocks(*(TransformerBlock(channels, n_heads, key_len) for _ in range(n_transformers)))
        self.pointwise_conv = ConvBlock(channels, 2 * channels, 1)
        self.crop = crop_len

    def forward(self, x: Tensor) -> Tensor:
        """[B, 4, L] -> [B, 2 channels, about L / 2^n_conv, less the crop at both ends]."""
        x = self.transformer_tower(self.conv_tower(x).transpose(1, 2)).transpose(1, 2)
        x = gelu(self.pointwise_conv(x))
        return x[:, :, self.crop : x.shape[2] - self.crop]


class EnformerModel(nn.Module):
    """Arguments as in gReLU's `model_params`. ValueError for a final function that is not known here."""

    def __init__(
        self,
        n_tasks: int,
        n_conv: int = 7,
        channels: int = 1536,
        n_transformers: int = 11,
        n_heads: int = 8,
        key_len: int = 64,
        crop_len: int = 0,
        final_act_func: str | None = None,
        final_pool_func: str | None = "avg",
    ) -> None:
        super().__init__()
        if final_act_func not in ACTIVATIONS or final_pool_func not in POOLS:
            raise ValueError(f"unknown final function: {final_act_func}, {final_pool_func}")
        self.activation, self.pool = final_act_func, final_pool_func
        self.embedding = Trunk(n_conv, channels, n_transformers, n_heads, key_len, crop_len)
        self.head = Head(2 * channels, n_tasks)

    def forward(self, one_hot: Tensor) -> Tensor:
        """one_hot [B, 4, L], letters A, C, G, T -> [B, n_tasks, 1], or without a final pool its length."""
        return POOLS[self.pool](ACTIVATIONS[self.activation](self.head(self.embedding(one_hot))))


def gelu(x: Tensor) -> Tensor:
    """The approximation that Enformer was trained with."""
    return x * torch.sigmoid(1.702 * x)


def conv_widths(channels: int, n_conv: int) -> list[int]:
    """Of the n_conv - 1 blocks after the stem: a geometric row from half of `channels` to all of them."""
    num, half = n_conv - 1, channels // 2
    growth = (channels / half) ** (1 / (num - 1))
    return [round(half * growth**i / MULTIPLE) * MULTIPLE for i in range(num)]


def position_features(length: int, features: int, device: torch.device) -> Tensor:
    """[2 length - 1, features]: of the distances -(length - 1) to length - 1."""
    distances = torch.arange(1 - length, length, device=device, dtype=torch.float32)[:, None]
    far, num = distances.abs(), features // KINDS
    half_lives = 2 ** torch.linspace(3.0, math.log2(length), num, device=device)
    widths = 2 ** torch.arange(1, num + 1, device=device, dtype=torch.float32) - 1
    exponential = torch.exp(-math.log(2.0) / half_lives * far)
    symmetric = torch.cat([exponential, (widths > far).float(), _gamma(far, length, num)], 1)
    return torch.cat([symmetric, distances.sign() * symmetric], 1)


def _gamma(far: Tensor, length: int, num: int) -> Tensor:
    """Densities of gamma laws whose means lie between length / num and length, by the largest at each distance."""
    means, deviation = torch.linspace(length / num, length, num, device=far.device), length / (2 * num)
    shape, rate = (means / deviation) ** 2, means / deviation**2
    log_density = torch.xlogy(shape - 1, far) - rate * far + shape * torch.log(rate) - torch.lgamma(shape)
    density = log_density.exp() + 1e-8
    return density / density.amax(1, keepdim=True)
