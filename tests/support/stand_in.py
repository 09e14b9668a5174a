"""A stand-in for a GPU where there is none: torch's meta device, which computes shapes and no numbers.

What a GPU would refuse is refused: an operation on tensors of both host and device. What makes the host wait for a GPU
is counted: a copy to the host, a number or a truth value that is read. What comes back from the device is random.
"""

from __future__ import annotations

import traceback
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

DEVICE = "meta"
COPIES = ("_to_copy", "copy_")


class StandIn(TorchDispatchMode):
    """As long as the context lasts. syncs: where the host waited for the device, file and line of this package."""

    def __init__(self) -> None:
        super().__init__()
        self.syncs: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        name = func.overloadpacket.__name__
        held = any(tensor.device.type == DEVICE for tensor in tensors)
        if held and name == "_local_scalar_dense":
            self.syncs.append(_place())
            return {torch.bool: True}.get(tensors[0].dtype, 1.0 if tensors[0].is_floating_point() else 1)
        if held and name == "nonzero":
            raise AssertionError(f"{_place()}: {name} gives a shape that only the device knows")
        if name == "_to_copy":
            return self._copied(func, args, kwargs)
        # numbers of the host may be given to a device's operations
        if held and name not in COPIES and any(t.device.type != DEVICE and t.ndim > 0 for t in tensors):
            raise AssertionError(f"{_place()}: {name} of host and device tensors")
        return func(*args, **kwargs)

    def _copied(self, func: Any, args: Any, kwargs: Any) -> Any:
        device = kwargs.get("device")
        if args[0].device.type != DEVICE or device is None or torch.device(device).type == DEVICE:
            return func(*args, **kwargs)
        self.syncs.append(_place())
        dtype = kwargs.get("dtype") or args[0].dtype
        return torch.rand(args[0].shape).to(dtype)


def _place() -> str:
    """Which line of the package is at it."""
    ours = [frame for frame in traceback.extract_stack() if "/dav_ray/" in frame.filename]
    return f"{ours[-1].filename.rpartition('/dav_ray/')[2]}:{ours[-1].lineno}" if ours else "a test"
