"""A small dilated CNN on 12 letters, and what the tests of masked models ask of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dav_ray.diffusion.masked.alphabet import Alphabet
from dav_ray.diffusion.masked.dilated_cnn import DilatedCNN
from dav_ray.diffusion.masked.model import MaskedDiffusion

T, DNA, PLACES = 5, Alphabet.of("dna"), 12
TARGETS = ("linear", "convs", "time_layers", "final_conv")


def cnn(classes: int = 0, time_conditioned: bool = False, adapted: bool = False, **options: Any) -> MaskedDiffusion:
    """A DilatedCNN on 12 letters; the last layer is scaled, so that it has opinions. adapted: LoRA, moved away."""
    torch.manual_seed(0)
    backbone = DilatedCNN(5, hidden=8, stacks=1, kernel=3, classes=classes)
    with torch.no_grad():
        backbone.final_conv[2].weight *= 4
    diffusion = MaskedDiffusion(
        backbone,
        alphabet=DNA,
        length=PLACES,
        classes=classes,
        time_conditioned=time_conditioned,
        **{"steps": T, **options},
    )
    if adapted:
        diffusion.add_adapters(2, 4.0, TARGETS, seed=0)
        train(diffusion)
    return diffusion


def train(diffusion: MaskedDiffusion) -> None:
    """What an M-step does: other trainable weights."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in diffusion.trainable().parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def tokens(num: int, masked: float = 0.5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 4, (num, PLACES), generator=generator)
    return torch.where(torch.rand(x.shape, generator=generator) < masked, 4, x)


def log_p(diffusion: MaskedDiffusion, x: Tensor, conditions: Sequence[str], t: int = 2, **options: Any) -> Tensor:
    with torch.no_grad():
        kernel: Any = diffusion.predict(x, t, conditions, **options).kernel
    return kernel.log_p


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a.log_p, b.log_p, rtol=1e-4, atol=1e-5)
    assert torch.equal(a.x, b.x) and torch.equal(a.unmask, b.unmask)
