"""Policy and pretrained model side by side, so that they differ by what was learned alone.

Two passes of one network in half precision are rounded apart as soon as the adapters are not zero, however little they
do. Divided by a step's sigma and summed over all dimensions, that rounding is nats: more than the KL itself. Where a
model rounds so (`Diffusion.rounded`), what compares the two takes both passes in float32, TF32 off.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dav_ray.diffusion.base import Diffusion, Kernel

HALF = (torch.bfloat16, torch.float16)


def against_reference(
    diffusion: Diffusion, x_t: Tensor, t: int | Tensor, conditions: Sequence[str], known: Kernel | None = None
) -> tuple[Kernel, Kernel]:
    """p_theta and p_theta0 at x_t, without graph; in float32 where the model rounds more coarsely. known: p_theta, as
    the model gives it, which need not be evaluated again where it does not."""
    with torch.no_grad(), diffusion.exactly():
        policy = known
        if policy is None or diffusion.rounded:
            policy = diffusion.predict(x_t, t, conditions).kernel
        return policy, diffusion.predict(x_t, t, conditions, reference=True).kernel


def rounds(network: nn.Module) -> bool:
    """Whether weights are held in half precision, or a GPU may shorten the factors of float32 products (TF32)."""
    if any(parameter.dtype in HALF for parameter in network.parameters()):
        return True
    return any(parameter.is_cuda for parameter in network.parameters()) and tf32_allowed()


def tf32_allowed() -> bool:
    """Whether this process lets a GPU shorten the factors of some float32 products."""
    return any(library.allow_tf32 for library in _libraries())


@contextlib.contextmanager
def in_float32(network: nn.Module) -> Iterator[None]:
    """Within it the network computes in float32 what its weights, rounded as they are, say. Weights in half precision
    are widened a layer at a time, while it is called. Without autograd."""
    handles: list[Any] = []
    for module in network.modules():
        own = [parameter for parameter in module.parameters(recurse=False) if parameter.dtype in HALF]
        if own:
            layer = _Widened(own)
            handles.append(module.register_forward_pre_hook(layer.widen, with_kwargs=True))
            handles.append(module.register_forward_hook(layer.restore, always_call=True))
    try:
        with _without_tf32():
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Widened:
    """Hooks of one layer: its weights in float32 during its call, and what it is called with."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters, self._kept = parameters, list[Tensor]()

    def widen(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        self._kept = [parameter.data for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.data = parameter.data.float()
        return tuple(map(_wide, args)), {name: _wide(value) for name, value in kwargs.items()}

    def restore(self, module: nn.Module, args: Any, output: Any) -> None:
        for parameter, data in zip(self._parameters, self._kept, strict=True):
            parameter.data = data


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALF else value


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    before = [library.allow_tf32 for library in _libraries()]
    for library in _libraries():
        library.allow_tf32 = False
    try:
        yield
    finally:
        for library, allowed in zip(_libraries(), before, strict=True):
            library.allow_tf32 = allowed


def _libraries() -> list[Any]:
    """Of convolutions, and of matrix products."""
    return [torch.backends.cudnn, torch.backends.cuda.matmul]
