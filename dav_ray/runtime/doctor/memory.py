"""How much memory a role's model takes: weights exactly, activations by a rule of thumb.

    weights       elements x bytes of model.dtype, adapters in float32; full weights: float32, and a frozen copy;
                  without what is released: text encoders, and on ranks the VAE
    training      16 bytes per trained parameter beside its value: gradient 4, AdamW's moments 8, DDP's bucket 4
    activations   rows x elements per row x bytes, rows = micro-batch x passes (2 with guidance)
    graphs        of a search with gradient: those of all parents of a chunk, network and decoder, held at once

Elements per row are the model family's (`Family.activations`, `Family.training`); with autocast norms keep float32.
"""

from __future__ import annotations

from dataclasses import dataclass

from dav_ray.config.batches import TRAINED
from dav_ray.config.families.sizes import Sizes
from dav_ray.config.families.table import family_of
from dav_ray.config.schema import Config
from dav_ray.diffusion.pipelines.encoders import ENCODER, MOST_EMBEDDED
from dav_ray.runtime.doctor.weights import adapter_elements

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
CUDA_CONTEXT = 0.6e9  # bytes that a process takes on a GPU before its first tensor


@dataclass(frozen=True)
class Memory:
    """Bytes."""

    weights: float
    training: float
    activations: float
    released: float = 0.0  # further weights, which go before anything else comes

    @property
    def total(self) -> float:
        return self.weights + max(self.training + self.activations, self.released)


def search_memory(config: Config, sizes: Sizes, passes: int) -> Memory:
    """One search worker's."""
    search = config.search
    rows = min(search.micro_batch, search.chunk * search.candidates * search.particles) * passes
    decoded = min(search.decode_batch, search.chunk * search.candidates * search.particles)
    each, decoding = family_of(config.model).activations(sizes, back=False)
    size = _width(config, search.precision)
    held = max(rows * each * size, decoded * decoding * BYTES[config.model.dtype])
    if size < BYTES["float32"]:  # what is held against the pretrained model is evaluated in it
        compared = max(search.chunk * search.particles * (search.beta > 0), config.evaluate.batch)
        held = max(held, min(search.micro_batch, compared) * passes * each * BYTES["float32"])
    gone = _released(config, sizes)
    activations = max(held, _graphs(config, sizes, passes) if search.gradient else 0.0)
    return Memory(_weights(config, sizes) - gone, 0.0, activations, gone)


def _graphs(config: Config, sizes: Sizes, passes: int) -> float:
    """Bytes of the graphs through which a chunk's gradients go back."""
    search, family = config.search, family_of(config.model)
    network = passes * _graph(config, sizes, search.precision, checkpointing=False)
    decoder = family.activations(sizes, back=True)[1] * BYTES[config.model.dtype]
    return search.chunk * search.particles * (network + decoder)


def train_memory(config: Config, sizes: Sizes, passes: int, *, checkpointing: bool | None = None) -> Memory:
    """One rank's. checkpointing: None: where `mstep.checkpointing` is on."""
    mstep = config.mstep
    rows = min(mstep.micro_batch, max(1, mstep.batch_size // config.roles.train.replicas)) * passes
    on = mstep.checkpointing == "on" if checkpointing is None else checkpointing
    activations = rows * _graph(config, sizes, mstep.precision, checkpointing=on)
    gone = _released(config, sizes, "vae")
    return Memory(_weights(config, sizes) - gone, float(TRAINED * trained(config, sizes)), activations, gone)


def _graph(config: Config, sizes: Sizes, precision: str, *, checkpointing: bool) -> float:
    """Bytes that a row of the policy's network holds for its backward pass; precision: of autocast."""
    half = config.model.dtype != "float32" and config.mstep.parameters == "lora"
    autocast = precision != "float32"
    held = family_of(config.model).training(sizes, half=half, autocast=autocast, checkpointing=checkpointing)
    return held.bytes(_width(config, precision))


def _width(config: Config, precision: str) -> int:
    """Bytes of an element in the network's calls: autocast's, else the weights'."""
    weights = "float32" if config.mstep.parameters == "full" else config.model.dtype
    return BYTES[weights if precision == "float32" else precision]


def trained(config: Config, sizes: Sizes) -> int:
    """Parameters that the M-step trains."""
    policy, mstep = sizes.policy, config.mstep
    if mstep.parameters == "full":
        return sizes.elements(policy)
    return adapter_elements(sizes.shapes[policy], mstep.lora.rank, config.lora_targets)


def _released(config: Config, sizes: Sizes, *others: str) -> float:
    """Bytes of the text encoders, which go once the prompts are embedded, if these are few, and of other networks."""
    encoders = [name for name in sizes.shapes if name.startswith(ENCODER) and len(set(config.prompts)) < MOST_EMBEDDED]
    gone = (*encoders, *(name for name in others if name in sizes.shapes))
    return float(BYTES[config.model.dtype] * sum(sizes.elements(name) for name in gone))


def _weights(config: Config, sizes: Sizes) -> float:
    """All networks with their adapters; a policy that is trained whole stands beside its frozen copy, in float32."""
    policy, size = sizes.policy, BYTES[config.model.dtype]
    others = sum(sizes.elements(name) for name in sizes.shapes if name != policy)
    own = sizes.elements(policy) * (4 if config.mstep.parameters == "full" else size)
    return others * size + own + 4.0 * trained(config, sizes)
