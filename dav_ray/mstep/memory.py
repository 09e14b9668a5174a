"""What a rank holds for the backward pass, measured on its model: whether `mstep.checkpointing: auto` is on."""

from __future__ import annotations

import torch
from torch import Tensor

from dav_ray.diffusion.base import Diffusion
from dav_ray.diffusion.device import free_memory, out_of_memory
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.types import Transitions


class Saved:
    """Counts the bytes that autograd saves while it is entered, each storage once. `held`: storages that are there
    anyway (weights) and do not count."""

    def __init__(self, held: torch.nn.Module) -> None:
        self._anyway = {p.untyped_storage()._cdata for p in held.parameters()}
        self.storages: dict[int, torch.UntypedStorage] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self.storages.values())

    def __enter__(self) -> Saved:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._anyway:
            self.storages[storage._cdata] = storage
        return tensor


def saved_per_transition(diffusion: Diffusion, condition: str) -> int:
    """Bytes that the policy's forward pass saves for the backward pass of one transition."""
    t = diffusion.steps
    x = diffusion.prior([condition], KeyedNoise(0, 0, [0]).at(t))
    with Saved(diffusion.trainable()) as saved:
        loss = diffusion.step_loss(Transitions(x, x, torch.tensor([t]), [condition]), reference=False)
    del loss
    return saved.bytes


def exceeds(diffusion: Diffusion, condition: str, micro_batch: int, free: float) -> bool:
    """Whether `micro_batch` transitions need more than `free` bytes for their backward pass."""
    try:
        return micro_batch * saved_per_transition(diffusion, condition) > free
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        free_memory()
        return True
