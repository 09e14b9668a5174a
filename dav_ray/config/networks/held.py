"""Elements that a network holds at once, by a rule of thumb: so many times what its layers put out.

    sampling      twice what the largest block puts out
    decoding      three times the largest layer's output; a VAE of videos keeps every layer's input besides
    training      FACTORS x what all layers put out, with adapters on the family's usual layers
    checkpointed  what goes into the blocks, and FACTORS x what the largest block puts out, which is computed again

The factors were counted on small networks of each class with attention that keeps no square matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

from dav_ray.config.networks.counted import Counted

SAMPLING, DECODING, DECODING_VIDEO, DECODING_BACK = 2.0, 3.0, 1.4, 2.0
VIDEO = "AutoencoderKLQwenImage"


@dataclass(frozen=True)
class Held:
    """Elements: in the precision of the network's calls, and in float32 whatever that is."""

    narrow: float
    wide: float = 0.0

    def bytes(self, width: int) -> float:
        """width: bytes of an element in the precision of the calls."""
        return self.narrow * width + self.wide * 4


@dataclass(frozen=True)
class Factors:
    """What is kept for each element that a layer puts out: in the precision of the calls, and in float32 whatever that
    is. whole: of float32 weights; half: of half-precision ones; autocast: whatever the weights."""

    whole: float
    half: tuple[float, float]
    autocast: tuple[float, float]


FACTORS = {
    "SD3Transformer2DModel": Factors(1.38, (1.16, 0.61), (1.36, 0.41)),
    "FluxTransformer2DModel": Factors(1.82, (1.08, 0.96), (1.60, 0.44)),
    "Flux2Transformer2DModel": Factors(1.89, (1.44, 0.64), (1.72, 0.36)),
    "ZImageTransformer2DModel": Factors(2.22, (1.68, 1.35), (2.46, 0.57)),
    "Lumina2Transformer2DModel": Factors(1.91, (1.41, 1.08), (1.71, 0.78)),
    "SanaTransformer2DModel": Factors(1.98, (1.61, 0.68), (2.10, 0.21)),
    "QwenImageTransformer2DModel": Factors(1.99, (1.24, 1.16), (1.98, 0.60)),
    "UNet2DConditionModel": Factors(1.64, (1.41, 0.49), (1.64, 0.30)),
}


def training(name: str, made: Counted, *, half: bool, autocast: bool, checkpointing: bool) -> Held:
    """Per state that goes through the network of this class with autograd. ValueError where there is no estimate."""
    if name not in FACTORS:
        raise ValueError(f"nothing is known of the activations of {name}")
    factors = FACTORS[name]
    narrow, wide = factors.autocast if autocast else factors.half if half else (factors.whole, 0.0)
    if not checkpointing:
        return Held(narrow * made.put, wide * made.put)
    again = made.whole + max(made.blocks)
    return Held(made.kept + narrow * again, wide * again)


def sampling(made: Counted) -> float:
    """Per state that goes through the network without autograd."""
    return SAMPLING * max(made.blocks)


def decoding(name: str, made: Counted, *, back: bool) -> float:
    """Per decoded image; back: with autograd."""
    if back:
        return DECODING_BACK * made.put
    return DECODING_VIDEO * made.put if name == VIDEO else DECODING * made.largest
