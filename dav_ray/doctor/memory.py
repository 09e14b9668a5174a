"""How much memory a role's model takes: weights exactly, activations by a rule of thumb.

    weights       elements x bytes of model.dtype, adapters in float32; full weights: float32, and a frozen copy
    training      16 bytes per trained parameter beside its value: gradient 4, AdamW's moments 8, DDP's bucket 4
    activations   rows x elements per row x bytes, rows = micro-batch x passes (2 with guidance)

Elements per row of a UNet whose level l has maps of C_l x H_l x W_l, with n_l residual layers down and n_l + 1 up:

    sampling      skips (every down layer's map) + 12 maps of the first level
    training      44 maps of the level for each of its layers

and of a VAE's decoder with C maps arriving at full resolution H x W: 3 C H W, or 22 C H W with the reward's gradient.
The factors were counted on Stable Diffusion 1.5's shapes with attention that keeps no square matrices. A masked CNN of
hidden size h over L letters: 6 L h sampling, 5 L h for each convolution training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dav_ray.config import Config
from dav_ray.doctor.weights import Sizes, adapter_elements

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
CUDA_CONTEXT = 0.6e9  # bytes that a process takes on a GPU before its first tensor
TRAINED = 16  # bytes
SAMPLING, TRAINING = 12, 44
DECODING, DECODING_BACK = 3, 22
CNN_SAMPLING, CNN_TRAINING = 6, 5


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
    each, decoding = _per_row(sizes, back=search.gradient)
    size = BYTES[config.model.dtype]
    return Memory(_weights(config, sizes), 0.0, max(rows * each * size, decoded * decoding * size))


def train_memory(config: Config, sizes: Sizes, passes: int) -> Memory:
    """One rank's."""
    mstep = config.mstep
    rows = min(mstep.micro_batch, max(1, mstep.batch_size // config.roles.train.replicas)) * passes
    each, _ = _per_row(sizes, back=True)
    activations = rows * each * BYTES[mstep.precision]
    return Memory(_weights(config, sizes), float(TRAINED * trained(config, sizes)), activations)


def trained(config: Config, sizes: Sizes) -> int:
    """Parameters that the M-step trains."""
    policy, mstep = _policy(sizes), config.mstep
    if mstep.parameters == "full":
        return sizes.elements(policy)
    return adapter_elements(sizes.shapes[policy], mstep.lora.rank, config.lora_targets)


def _weights(config: Config, sizes: Sizes) -> float:
    """All networks with their adapters; a policy that is trained whole stands beside its frozen copy, in float32."""
    policy, size = _policy(sizes), BYTES[config.model.dtype]
    others = sum(sizes.elements(name) for name in sizes.shapes if name != policy)
    own = sizes.elements(policy) * (4 if config.mstep.parameters == "full" else size)
    return others * size + own + 4.0 * trained(config, sizes)


def _policy(sizes: Sizes) -> str:
    return "unet" if "unet" in sizes.shapes else "network"


def _per_row(sizes: Sizes, *, back: bool) -> tuple[float, float]:
    """Elements per row of the network, and of decoding one sample."""
    if "unet" in sizes.shapes:
        return _unet(sizes.configs["unet"], back), _decoder(sizes.configs["unet"], sizes.configs["vae"], back)
    convolutions = [shape for name, shape in sizes.shapes["network"].items() if name.startswith("convs.")]
    kernels = [shape for shape in convolutions if len(shape) == 3] or [(1, 1, 1)]
    width = sizes.configs["network"]["length"] * max(shape[0] for shape in kernels)
    return width * (CNN_TRAINING * len(kernels) if back else CNN_SAMPLING), 0.0


def _unet(config: Mapping[str, Any], back: bool) -> float:
    channels, layers = config["block_out_channels"], config["layers_per_block"]
    depth = [layers] * len(channels) if isinstance(layers, int) else layers
    height, width = _size(config)
    maps = [c * (height >> level) * (width >> level) for level, c in enumerate(channels)]
    if back:
        counts = [2 * n + 1 for n in depth]
        return TRAINING * (sum(m * n for m, n in zip(maps, counts, strict=True)) + 2 * maps[-1])
    skips = maps[0] + sum(m * n for m, n in zip(maps, depth, strict=True)) + sum(m // 4 for m in maps[:-1])
    return skips + SAMPLING * maps[0]


def _decoder(unet: Mapping[str, Any], vae: Mapping[str, Any], back: bool) -> float:
    channels = vae["block_out_channels"]
    height, width = (side * 2 ** (len(channels) - 1) for side in _size(unet))
    return (DECODING_BACK if back else DECODING) * channels[min(1, len(channels) - 1)] * height * width


def _size(unet: Mapping[str, Any]) -> tuple[int, int]:
    size = unet["sample_size"]
    return (size, size) if isinstance(size, int) else (size[0], size[1])
