"""LoRA adapters on a plain torch module, through peft."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence

import torch
from torch import nn


def add(module: nn.Module, rank: int, alpha: float, targets: Sequence[str], seed: int) -> None:
    """Adapters on the linear and convolutional layers at or below the targets: zero at first, the same for one seed.

    ValueError where a target names no such layer.
    """
    from peft import LoraConfig
    from peft.mapping import inject_adapter_in_model

    names = layers(module, targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # peft types the scale as int, and multiplies by it: any float will do
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=names, init_lora_weights=True)  # type: ignore[arg-type]
        inject_adapter_in_model(config, module)
    for layer in _adapted(module):
        base = layer.get_base_layer()
        if isinstance(base, nn.Conv1d):  # peft leaves these two out of the adapter's own convolution
            for down in layer.lora_A.values():
                down.dilation, down.padding_mode = base.dilation, base.padding_mode


def layers(module: nn.Module, targets: Sequence[str]) -> list[str]:
    """Full names of the layers at or below each target (`convs`, `final_conv.0`)."""
    names = [name for name, part in module.named_modules() if isinstance(part, nn.Linear | nn.Conv1d)]
    chosen: list[str] = []
    for target in targets:
        below = [name for name in names if f".{target}." in f".{name}."]
        if not below:
            known = sorted({name.split(".")[0] for name in names})
            raise ValueError(f"mstep.lora.targets: no layer is named {target}; allowed: {', '.join(known)}")
        chosen += [name for name in below if name not in chosen]
    return chosen


@contextlib.contextmanager
def disabled(module: nn.Module) -> Iterator[None]:
    """The module without its adapters, bit-equal to what it was before them."""
    parts = _adapted(module)
    for layer in parts:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in parts:
            layer.enable_adapters(True)


def merged(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of the module with its adapters added into the weights, under the names of the plain module."""
    whole = copy.deepcopy(module)
    for layer in _adapted(whole):
        layer.merge()
    plain = {
        name.replace(".base_layer.", "."): tensor for name, tensor in whole.state_dict().items() if ".lora_" not in name
    }
    return {name: tensor.detach().cpu().contiguous() for name, tensor in plain.items()}


def folded(module: nn.Module) -> nn.Module:
    """A second module of plain layers, in whose weights `fold` puts the adapters. All other weights are the same
    tensors."""
    memo = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    whole = copy.deepcopy(module, memo)
    for name, layer in _named(module):
        plain = copy.deepcopy(layer.get_base_layer()).requires_grad_(False)
        parent, _, own = name.rpartition(".")
        setattr(whole.get_submodule(parent), own, plain)
    fold(module, whole)
    return whole


@torch.no_grad()
def fold(module: nn.Module, whole: nn.Module) -> None:
    """Give the module of `folded` the adapters that the first has now: weight + scale B A, added in float32."""
    for name, layer in _named(module):
        (adapter,) = layer.active_adapters
        weight, plain = layer.get_base_layer().weight, whole.get_submodule(name)
        plain.get_parameter("weight").copy_(weight.float() + layer.get_delta_weight(adapter).float())


def _named(module: nn.Module) -> list:
    from peft.tuners.lora import LoraLayer

    return [(name, part) for name, part in module.named_modules() if isinstance(part, LoraLayer)]


def _adapted(module: nn.Module) -> list:
    return [part for _, part in _named(module)]
