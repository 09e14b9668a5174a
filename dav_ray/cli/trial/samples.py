"""What a reward is shown when it is tried: samples made up at random, or a few of a recipe's model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dav_ray.config.families.alphabet import alphabet_of
from dav_ray.config.families.table import family_of
from dav_ray.config.schema import Config
from dav_ray.diffusion.masked.alphabet import Alphabet
from dav_ray.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

PROMPTS = ("a photo of a cat", "a photo of a dog", "a house by the sea")
SIDE = 256  # of images where no model tells
OTHER_SIDES = ((64, 64), (96, 160))  # height, width
DNA = ("dna", 200)


@dataclass(frozen=True)
class Shown:
    """samples: images [B, 3, H, W] float32 in [0, 1], or tokens [B, L] int64; letters: of the alphabet, 0 for images;
    names: of the samples, in words."""

    samples: Tensor
    conditions: tuple[str, ...]
    names: tuple[str, ...]
    what: str
    letters: int = 0
    real: bool = False  # a model drew them

    def take(self, rows: Sequence[int]) -> Shown:
        picked = list(rows)
        words = tuple(self.conditions[i] for i in picked), tuple(self.names[i] for i in picked)
        return Shown(self.samples[picked], *words, self.what, self.letters, self.real)


def made_up(num: int, config: Config | None, tokens: tuple[str, int] | None) -> Shown:
    """Samples of the kind and size of a recipe's model; tokens: (alphabet, length) of sequences in their place."""
    prompts = config.prompts if config is not None else PROMPTS
    family = None if config is None else family_of(config.model)
    size = (SIDE, SIDE) if config is None or family is None else family.shape(config)
    if config is not None and family is not None and family.samples == "sequences":
        tokens = alphabet_of(config.model).letters, size[1]
    if tokens is not None:
        return sequences(num, *tokens, prompts if config is not None else ("",))
    return images(num, *size, prompts)


def images(num: int, height: int, width: int, prompts: Sequence[str] = PROMPTS) -> Shown:
    """Black, white, and by turns noise and soft colours."""
    import torch
    import torch.nn.functional as F

    rng = torch.Generator().manual_seed(0)
    found, names = [torch.zeros(3, height, width), torch.ones(3, height, width)], ["black", "white"]
    for i in range(max(0, num - 2)):
        if i % 2:
            found.append(torch.rand((3, height, width), generator=rng))
        else:
            coarse = torch.rand((1, 3, 4, 4), generator=rng)
            found.append(F.interpolate(coarse, (height, width), mode="bilinear")[0])
        names.append("noise" if i % 2 else "soft colours")
    what = f"made-up images of {height} x {width} pixels"
    return Shown(torch.stack(found[:num]), _cycled(prompts, num), tuple(names[:num]), what)


def sequences(num: int, alphabet: str, length: int, prompts: Sequence[str] = ("",)) -> Shown:
    """One of a single letter, the others at random."""
    import torch

    letters = Alphabet.of(alphabet).letters
    found = torch.randint(len(letters), (num, length), generator=torch.Generator().manual_seed(0))
    found[0] = 0
    names = (f"all {letters[0]}", *(["random"] * (num - 1)))
    return Shown(found, _cycled(prompts, num), names, f"made-up sequences of {length} letters", len(letters))


def drawn(config: Config, num: int, device: str) -> Shown:
    """Plain samples of a recipe's pretrained model, drawn in this process on the seeds of its evaluation."""
    import torch

    from dav_ray.config.build import for_search
    from dav_ray.diffusion.device import quiet
    from dav_ray.diffusion.noise import PipelineNoise
    from dav_ray.diffusion.sampling import ancestral

    quiet()
    diffusion, conditions, batches = for_search(config, device=device), _cycled(config.prompts, num), []
    for start in range(0, num, config.evaluate.batch):
        names = conditions[start : start + config.evaluate.batch]
        seeds = range(config.evaluate.seed + start, config.evaluate.seed + start + len(names))
        with torch.no_grad():
            states = ancestral(diffusion, names, PipelineNoise(seeds))
            batches.append(diffusion.decode(states[-1], names).cpu())
    family = family_of(config.model)
    letters = family.shape(config)[0] if family.samples == "sequences" else 0
    titles = tuple(f"seed {config.evaluate.seed + i}" for i in range(num))
    return Shown(torch.cat(batches), conditions, titles, "samples of the model", letters, real=True)


def tokens_of(text: str) -> tuple[str, int]:
    """`dna:200` -> its alphabet and length. UserError."""
    alphabet, _, length = text.rpartition(":")
    try:
        Alphabet.of(alphabet)
        if int(length) < 1:
            raise ValueError
    except ValueError:
        raise UserError(f"--tokens {text}: allowed: ALPHABET:LENGTH, for instance dna:200") from None
    return alphabet, int(length)


def _cycled(prompts: Sequence[str], num: int) -> tuple[str, ...]:
    return tuple(prompts[i % len(prompts)] for i in range(num))
