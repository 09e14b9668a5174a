"""Rewards on sequences: the share of G and C, and matches with the motifs of transcription factors.

`samples` are tokens [B, L] int64, letters' places in the alphabet, or their relaxation [B, L, V] float32, whose rows
are probabilities of the letters. Both score a one-hot sequence alike; only the relaxation has a gradient.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dav_ray.diffusion.masked.alphabet import Alphabet

BASES = "ACGT"  # in this order a base's complement stands at the mirrored place
PSEUDOCOUNT = 1.0  # per column of a motif, spread evenly over the bases


class GcContent:
    """The share of G and C in [0, 1]; with a target minus its distance from it: 0 at the target."""

    differentiable = True

    def __init__(self, target: float | None = None, alphabet: str = "dna") -> None:
        if target is not None and not 0 <= target <= 1:
            raise ValueError(f"target = {target}; allowed: a share of G and C in [0, 1], or none to maximise it")
        self.target, self.order = target, _bases(alphabet)

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        share = _gc(samples, self.order)
        return share if self.target is None else -(share - self.target).abs()


class GcWindow:
    """A constraint, for products: 1.0 where low <= share of G and C <= high, else 0.0."""

    differentiable = False

    def __init__(self, low: float = 0.4, high: float = 0.6, alphabet: str = "dna") -> None:
        if not 0 <= low <= high <= 1:
            raise ValueError(f"low = {low}, high = {high}; allowed: 0 <= low <= high <= 1")
        self.low, self.high, self.order = low, high, _bases(alphabet)

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        share = _gc(samples, self.order)
        return ((share >= self.low) & (share <= self.high)).float()


class MotifScore:
    """How well each motif's best match fits, mean over motifs; at most 1.0: the consensus of each stands somewhere.

    A match is the sum of log-odds against uniform bases over the motif's columns; the best of all positions (and of
    both strands) is divided by the consensus' own. Below 0: everywhere further from the motif than from chance, as long
    motifs often are from random sequences; a motif's score is raised to `floor`, if given: a product needs floor = 0.

    motifs: JASPAR ids (MA0139.2; without its version the newest) or names (one that several motifs have is an error);
    release: of JASPAR, such as JASPAR2024. Needs `pip install pyjaspar`.
    """

    differentiable = True

    def __init__(
        self,
        motifs: list[str],
        release: str = "JASPAR2024",
        alphabet: str = "dna",
        both_strands: bool = True,
        floor: float | None = None,
    ) -> None:
        if not motifs or isinstance(motifs, str):
            raise ValueError(f"motifs = {motifs!r}; allowed: a list of at least one JASPAR id or name")
        self.order = _bases(alphabet)
        self.weights = {motif: log_odds(counts) for motif, counts in _fetch(motifs, release).items()}
        self.both_strands, self.floor = both_strands, floor

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        columns = _one_hot(samples, self.order).transpose(1, 2)
        length = columns.shape[2]
        for motif, weights in self.weights.items():
            if weights.shape[1] > length:
                raise ValueError(f"motif {motif} has {weights.shape[1]} columns and a sequence {length} letters")
        scores = torch.stack([best_match(columns, weights, self.both_strands) for weights in self.weights.values()])
        return (scores if self.floor is None else scores.clamp_min(self.floor)).mean(dim=0)


def log_odds(counts: Tensor) -> Tensor:
    """log2 of p / (1/4), float32 [4, w], from counts [4, w] of A, C, G, T, with a pseudocount."""
    counts = counts.double() + PSEUDOCOUNT / 4
    return (counts / counts.sum(dim=0) * 4).log2().float()


def best_match(columns: Tensor, weights: Tensor, both_strands: bool) -> Tensor:
    """Best score over positions and strands as a share of the consensus' own. columns [B, 4, L], weights [4, w] -> [B].

    Where matches tie, they share the gradient evenly.
    """
    weights = weights.to(columns)
    strands = torch.stack([weights, weights.flip(0, 1)] if both_strands else [weights])
    return F.conv1d(columns, strands).amax(dim=(1, 2)) / weights.amax(dim=0).sum()


def _bases(alphabet: str) -> list[int]:
    """For each of A, C, G, T (or U) its place in the alphabet. ValueError for letters that are not these four."""
    letters = Alphabet.of(alphabet).letters.upper().replace("U", "T")
    if sorted(letters) != sorted(BASES):
        raise ValueError(f"alphabet = {alphabet}; allowed: dna, rna, or the four bases in another order")
    return [letters.index(base) for base in BASES]


def _one_hot(samples: Tensor, order: list[int]) -> Tensor:
    """Tokens [B, L] or relaxation [B, L, 4] in the alphabet's order -> [B, L, 4] float in the order of BASES."""
    if samples.ndim == 2 and not samples.is_floating_point():
        samples = F.one_hot(samples.long(), len(BASES)).float()
    if samples.ndim != 3 or samples.shape[2] != len(BASES):
        raise ValueError(f"samples of shape {list(samples.shape)}; allowed: tokens [B, L] or relaxation [B, L, 4]")
    return samples[..., order]


def _gc(samples: Tensor, order: list[int]) -> Tensor:
    """[B], in [0, 1]."""
    return _one_hot(samples, order)[..., 1:3].sum(dim=2).mean(dim=1)


def _fetch(motifs: Sequence[str], release: str) -> Mapping[str, Tensor]:
    """Counts [4, w] of A, C, G, T by motif. ImportError without pyjaspar; ValueError naming each motif not found."""
    try:
        import pyjaspar  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ImportError("motif_score needs JASPAR's motifs: pip install pyjaspar") from None
    if release not in pyjaspar.jaspar_releases:
        raise ValueError(f"release = {release}; allowed: {', '.join(pyjaspar.jaspar_releases)}")
    database = pyjaspar.jaspardb(release=release)
    found, mistakes = {}, []
    for name in motifs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pyjaspar's for a motif that does not exist: named below
            if re.fullmatch(r"[A-Z]{2}\d{4,}(\.\d+)?", name):
                hits: list[Any] = [hit for hit in [database.fetch_motif_by_id(name)] if hit is not None]
            else:
                hits = list(database.fetch_motifs_by_name(name) or [])
        if len(hits) == 1:
            found[name] = torch.tensor([[float(n) for n in hits[0].counts[base]] for base in BASES])
        else:
            ids = ", ".join(sorted(hit.matrix_id for hit in hits))
            mistakes.append(f"{name} (is {ids}: choose one)" if hits else f"{name} (unknown)")
    database.conn.close()
    if mistakes:
        raise ValueError(f"motifs = {', '.join(mistakes)}; allowed: ids or names of {release} such as MA0139.2")
    return found
