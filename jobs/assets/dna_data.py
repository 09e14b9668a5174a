"""The ARS1 library that logomaker ships: 603,569 variants of a 150-bp yeast replication origin, each with its counts in
the mutant library and after selection for plasmids that replicate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dav_ray.diffusion.masked.alphabet import Alphabet

DNA = Alphabet.of("dna")
LENGTH = 150


@dataclass(frozen=True)
class Variants:
    """n variants: tokens [n, 150] uint8, and how often each was read in the library and after selection, [n] int64."""

    tokens: np.ndarray
    library: np.ndarray
    selected: np.ndarray

    def take(self, rows: np.ndarray) -> Variants:
        return Variants(self.tokens[rows], self.library[rows], self.selected[rows])

    def __len__(self) -> int:
        return len(self.tokens)


def ars1() -> Variants:
    """All variants. ImportError where logomaker is missing."""
    import logomaker

    file = Path(logomaker.__file__).parent / "examples" / "datafiles" / "ars_sequences.txt.gz"
    frame = pd.read_csv(file, sep="\t", comment="#")
    letters = np.frombuffer("".join(frame["sequence"]).encode(), np.uint8).reshape(-1, LENGTH)
    table = np.full(256, 255, np.uint8)
    table[np.frombuffer(DNA.letters.encode(), np.uint8)] = np.arange(4)
    tokens = table[letters]
    assert tokens.max() < 4
    return Variants(tokens, frame["library_ct"].to_numpy(), frame["selected_ct"].to_numpy())


def split(variants: Variants, seed: int, test: float = 0.1) -> tuple[Variants, Variants, Variants]:
    """Disjoint halves of the variants for two oracles, and a test set that neither sees."""
    order = np.random.default_rng(seed).permutation(len(variants))
    held = int(test * len(variants))
    first, second = np.array_split(order[held:], 2)
    return variants.take(first), variants.take(second), variants.take(order[:held])
