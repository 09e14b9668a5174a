"""How much memory a role's model takes: weights exactly, activations by a rule of thumb.

    weights       elements x bytes of model.dtype, adapters in float32; full weights: float32, and a frozen copy;
                  without what is released: text encoders, and on ranks the VAE
    training      16 bytes per trained parameter beside its value: gradient 4, AdamW's moments 8, DDP's bucket 4
    activations   rows x elements per row x bytes, rows = micro-batch x passes (2 with guidance)
    graphs        of a search with gradient: those of all parents of a chunk, network and decoder, held at once

Elements per row are the model family's (`Family.activations`, `Family.training`); with autocast norms keep float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dav_ray.config.batches import SHARE, TRAINED
from dav_ray.config.families.sizes import Sizes, adapter_elements
from dav_ray.config.families.table import family_of
from dav_ray.config.schema import Config
from dav_ray.config.sections.roles import Role
from dav_ray.diffusion.pipelines.encoders import ENCODER, MOST_EMBEDDED

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


@dataclass(frozen=True)
class Fit:
    """The largest batches, powers of two, with which a worker fits a card; 0: none does. states, decoded: of the search
    worker's network and decoder; rows: transitions of the trainer's micro-batch; checkpointing: whether it needs it."""

    states: int
    decoded: int
    rows: int
    checkpointing: bool

    def __str__(self) -> str:
        search = f"search.micro_batch {self.states}, search.decode_batch {self.decoded}"
        training = f"mstep.micro_batch {self.rows}{' with checkpointing' if self.checkpointing else ''}"
        return (
            f"{search if self.states else 'search does not fit'}; {training if self.rows else 'training does not fit'}"
        )


def fit(config: Config, sizes: Sizes, card: float) -> Fit:
    """What fits a card of so many bytes, where search and training take turns on it; batches are not larger than what
    the recipe has work for."""
    passes, room = family_of(config.model).passes(config), SHARE * card - CUDA_CONTEXT
    search, at_once = config.search, config.search.chunk * config.search.candidates * config.search.particles

    def searching(states: int, decoded: int) -> bool:
        batches = {"micro_batch": states, "decode_batch": decoded}
        fewer = {"batch": min(config.evaluate.batch, states)}
        tried = config.model_copy(
            update={"search": search.model_copy(update=batches), "evaluate": config.evaluate.model_copy(update=fewer)}
        )
        return search_memory(tried, sizes, passes).total <= room

    def training(rows: int, checkpointing: bool) -> bool:
        tried = config.model_copy(update={"mstep": config.mstep.model_copy(update={"micro_batch": rows})})
        return train_memory(tried, sizes, passes, checkpointing=checkpointing).total <= room

    most = max(1, config.mstep.batch_size // config.roles.train.replicas)
    states = _largest(at_once, lambda n: searching(n, 1))
    decoded = _largest(at_once, lambda n: searching(states, n))
    plain, saving = (_largest(most, lambda n, on=on: training(n, on)) for on in (False, True))
    return Fit(states, decoded if states else 0, plain or saving, not plain and saving > 0)


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest power of two up to `most` that fits; 0 where 1 does not."""
    size = 0
    while (2 * size or 1) <= most and fits(2 * size or 1):
        size = 2 * size or 1
    return size


def memory_facts(config: Config) -> list[tuple[str, str]]:
    """What a worker of search and of training takes with the recipe's batches, where configurations tell."""
    family, roles = family_of(config.model), config.roles
    try:
        sizes = family.described(config)
        passes = family.passes(config)
        search, train = search_memory(config, sizes, passes), train_memory(config, sizes, passes)
        saving = train_memory(config, sizes, passes, checkpointing=True)
    except ValueError:
        return []
    each = [f"search some {_gigabytes(search, roles.search)}", f"training some {_gigabytes(train, roles.train)}"]
    if config.mstep.checkpointing == "auto" and roles.train.gpus:
        each.append(f"or {_gigabytes(saving, roles.train)} with checkpointing")
    return [("memory of a worker", ", ".join(each))]


def _gigabytes(memory: Memory, role: Role) -> str:
    return f"{(memory.total + (CUDA_CONTEXT if role.gpus else 0.0)) / 1e9:.3g} GB"
