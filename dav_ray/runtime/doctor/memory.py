"""How much memory a role's model takes: weights exactly, activations by a rule of thumb.

    weights       elements x bytes of model.dtype, adapters in float32; full weights: float32, and a frozen copy
    training      16 bytes per trained parameter beside its value: gradient 4, AdamW's moments 8, DDP's bucket 4
    activations   rows x elements per row x bytes, rows = micro-batch x passes (2 with guidance)

Elements per row are the model family's (`Family.activations`).
"""

from __future__ import annotations

from dataclasses import dataclass

from dav_ray.config.batches import TRAINED
from dav_ray.config.families.sizes import Sizes
from dav_ray.config.families.table import family_of
from dav_ray.config.schema import Config
from dav_ray.runtime.doctor.weights import adapter_elements

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
CUDA_CONTEXT = 0.6e9  # bytes that a process takes on a GPU before its first tensor


@dataclass(frozen=True)
class Memory:
    """Bytes."""

    weights: float
    training: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.training + self.activations


def search_memory(config: Config, sizes: Sizes, passes: int) -> Memory:
    """One search worker's."""
    search = config.search
    rows = min(search.micro_batch, search.chunk * search.candidates * search.particles) * passes
    decoded = min(search.decode_batch, search.chunk * search.candidates * search.particles)
    each, decoding = family_of(config.model).activations(sizes, back=search.gradient)
    size = BYTES[config.model.dtype]
    return Memory(_weights(config, sizes), 0.0, max(rows * each * size, decoded * decoding * size))


def train_memory(config: Config, sizes: Sizes, passes: int) -> Memory:
    """One rank's."""
    mstep = config.mstep
    rows = min(mstep.micro_batch, max(1, mstep.batch_size // config.roles.train.replicas)) * passes
    each, _ = family_of(config.model).activations(sizes, back=True)
    activations = rows * each * BYTES[mstep.precision]
    return Memory(_weights(config, sizes), float(TRAINED * trained(config, sizes)), activations)


def trained(config: Config, sizes: Sizes) -> int:
    """Parameters that the M-step trains."""
    policy, mstep = sizes.policy, config.mstep
    if mstep.parameters == "full":
        return sizes.elements(policy)
    return adapter_elements(sizes.shapes[policy], mstep.lora.rank, config.lora_targets)


def _weights(config: Config, sizes: Sizes) -> float:
    """All networks with their adapters; a policy that is trained whole stands beside its frozen copy, in float32."""
    policy, size = sizes.policy, BYTES[config.model.dtype]
    others = sum(sizes.elements(name) for name in sizes.shapes if name != policy)
    own = sizes.elements(policy) * (4 if config.mstep.parameters == "full" else size)
    return others * size + own + 4.0 * trained(config, sizes)
