"""Stable Diffusion 1.5's UNet on the meta device, whose calls keep what they would on a GPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dav_ray.mstep.memory import Saved

SD15 = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
}
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
PRODUCTS = (F.linear, F.conv2d, torch.conv2d, torch.matmul, torch.bmm, torch.baddbmm)  # that autocast makes narrow
NORMS = (F.group_norm, F.layer_norm)  # that it keeps in float32


class _Attention(torch.autograd.Function):
    """One kernel, as on a GPU: no square matrix is kept."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty((*q.shape[:-1], v.shape[-1]))
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out


class LikeAGpu(TorchFunctionMode):
    """Attention in one kernel, and CUDA's autocast, which there is none of on the meta device. Weights are cast once;
    what they take does not depend on the states."""

    def __init__(self, autocast: torch.dtype | None) -> None:
        super().__init__()
        self._autocast, self._weights = autocast, dict[int, Tensor]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            named = [kwargs[name] for name in ("query", "key", "value") if name in kwargs]
            return _Attention.apply(*map(self._narrow, (*args, *named)[:3]))
        if self._autocast and func in PRODUCTS + NORMS:
            cast = self._narrow if func in PRODUCTS else lambda x: x.float() if isinstance(x, Tensor) else x
            args, kwargs = tuple(map(cast, args)), {name: cast(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)

    def counted(self, kept: Saved) -> int:
        """Bytes that do depend on them."""
        weights = {tensor.untyped_storage()._cdata for tensor in self._weights.values()}
        return sum(storage.nbytes() for key, storage in kept.storages.items() if key not in weights)

    def _narrow(self, value: Any) -> Any:
        if self._autocast is None or not isinstance(value, Tensor) or value.dtype == self._autocast:
            return value
        if isinstance(value, nn.Parameter):
            if id(value) not in self._weights:
                self._weights[id(value)] = value.to(self._autocast)
            return self._weights[id(value)]
        return value.to(self._autocast)


def unet(dtype: torch.dtype) -> Any:
    """With adapters of rank 16 in float32 on its attention layers."""
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig

    with torch.device("meta"):
        made = UNet2DConditionModel(**SD15).to(dtype).requires_grad_(False).eval()  # type: ignore[arg-type]
        made.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=TARGETS))
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return made


def saved(network: Any, dtype: torch.dtype, autocast: torch.dtype | None) -> int:
    """Bytes that a guided pass of one state keeps for the backward pass."""
    with torch.device("meta"):
        x, text = torch.empty(2, 4, 64, 64, dtype=dtype), torch.empty(2, 77, 768, dtype=dtype)
        with Saved(network) as kept, LikeAGpu(autocast) as gpu:
            network(x, torch.empty(2, dtype=torch.long), encoder_hidden_states=text)
    return gpu.counted(kept)


def saved_by_a_layer(network: Any, dtype: torch.dtype, autocast: torch.dtype | None) -> int:
    """The same of one residual layer of the first level and its attention."""
    block = network.down_blocks[0]
    with torch.device("meta"):
        x, text = torch.empty(2, 320, 64, 64, dtype=dtype), torch.empty(2, 77, 768, dtype=dtype)
        with Saved(network) as kept, LikeAGpu(autocast) as gpu:
            x = block.resnets[0](x, torch.empty(2, 1280, dtype=dtype))
            block.attentions[0](x, encoder_hidden_states=text)
    return gpu.counted(kept)
