"""Ehrlich functions: cheap problems of sequence design whose optimum is known (Stanton et al., arXiv 2407.00236).

A transition matrix bans some letters right after others. Motif i has k letters and the offsets where they belong:

    f(x) = prod_i max_l floor(q m_i(x, l) / k) / q    if no banned pair stands in x, else -inf

m_i(x, l): how many of motif i's letters stand at l plus their offsets, all inside x. f is 1.0 at `optimum()`, and
nowhere higher. The paper leaves open what is drawn from the seed; see `_transitions`, `_motifs` and `_offsets`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_FUNCTION, _SEQUENCES = 0, 1  # what a seed's random numbers are for


class Ehrlich:
    """f of tokens [B, length] in 0..letters-1; [B] float64 in [0, 1], or -inf.

    motifs: c; motif_length: k; quantization: q, how many levels a motif's quality has, k if None. The same arguments
    give the same function everywhere.
    """

    differentiable = False

    def __init__(
        self,
        length: int = 128,
        motifs: int = 8,
        motif_length: int = 8,
        quantization: int | None = None,
        letters: int = 4,
        seed: int = 0,
    ) -> None:
        quantization = motif_length if quantization is None else quantization
        _check(length, motifs, motif_length, quantization, letters, seed)
        self.length, self.letters, self.quantization, self.seed = length, letters, quantization, seed
        rng = _uniforms(seed, _FUNCTION)
        self.transitions = _transitions(letters, rng)  # [V, V]: row: a letter, column: the next one
        self.banned = self.transitions == 0
        self.motifs = _motifs(self.transitions, motifs, motif_length, rng)  # [c, k]
        self.offsets = _offsets(length // motifs, motifs, motif_length, rng)  # [c, k], from 0, rising
        reached = self(self.optimum()[None], ("",)).item()
        assert reached == 1.0, f"the optimum that was built has the value {reached}"

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        """samples: tokens [B, L] int64; conditions do not matter."""
        tokens = self._columns(samples)
        places = [(tokens == letter).view(np.uint8) for letter in range(self.letters)]
        product = np.ones(tokens.shape[1])
        for motif, offsets in zip(self.motifs, self.offsets, strict=True):
            width = self.length - offsets[-1]
            found = np.zeros((width, tokens.shape[1]), np.uint8)
            for letter, offset in zip(motif, offsets, strict=True):
                found += places[letter][offset : offset + width]
            best = found.max(axis=0).astype(np.int64)  # floor rises with m: the best place is the same before and after
            product *= (self.quantization * best // len(motif)) / self.quantization
        product[self._infeasible(tokens)] = -np.inf
        return torch.from_numpy(product)

    def feasible(self, tokens: Tensor) -> Tensor:
        """[B, L] -> [B] bool: whether no banned pair stands in it."""
        return torch.from_numpy(~self._infeasible(self._columns(tokens)))

    def optimum(self) -> Tensor:
        """Tokens [L], int64, of value 1.0: the motifs one after another, gaps filled with the letter before them.

        A letter may follow itself, and the motifs, read on end, are a walk of allowed transitions.
        """
        room = self.length // len(self.motifs)
        starts = (np.arange(len(self.motifs))[:, None] * room + self.offsets).ravel()
        return torch.from_numpy(np.repeat(self.motifs.ravel(), np.diff(starts, append=self.length)))

    def initial(self, num: int, seed: int) -> Tensor:
        """num feasible sequences [num, L], int64: walks of the transition matrix from uniform first letters.

        More of them with the same seed begin with the same ones.
        """
        return torch.from_numpy(_walks(self.transitions, _uniforms(seed, _SEQUENCES).random((num, self.length))))

    def _columns(self, tokens: Tensor) -> np.ndarray:
        """[L, B] uint8: what lies side by side in memory is then compared at once."""
        if tokens.ndim != 2 or tokens.shape[1] != self.length:
            raise ValueError(f"samples of shape {list(tokens.shape)}; allowed: tokens [B, {self.length}]")
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.letters:
            raise ValueError(f"tokens in {int(tokens.min())}..{int(tokens.max())}; allowed: 0..{self.letters - 1}")
        return np.ascontiguousarray(tokens.cpu().numpy().astype(np.uint8).T)

    def _infeasible(self, columns: np.ndarray) -> np.ndarray:
        return self.banned[columns[:-1], columns[1:]].any(axis=0)


def _check(length: int, motifs: int, motif_length: int, quantization: int, letters: int, seed: int) -> None:
    """ValueError for what no function can be built from."""
    if not 3 <= letters <= 254:
        raise ValueError(f"letters = {letters}; allowed: 3 to 254, of two letters no pair can be banned")
    if motifs < 1 or not 2 <= motif_length <= 255:
        raise ValueError(f"motifs = {motifs} of {motif_length} letters; allowed: at least 1, of 2 to 255 letters")
    if length < motifs * motif_length:
        rule = f"at least {motifs * motif_length}, the letters of all motifs"
        raise ValueError(f"length = {length}; allowed: {rule}")
    if not 1 <= quantization <= motif_length:
        raise ValueError(f"quantization = {quantization}; allowed: 1 to {motif_length}, the letters of a motif")
    if seed < 0:
        raise ValueError(f"seed = {seed}; allowed: 0 or more")


def _uniforms(seed: int, purpose: int) -> np.random.Generator:
    """Only its `random()` is used: numpy may change its other distributions from one version to the next."""
    return np.random.Generator(np.random.PCG64([seed, purpose]))


def _transitions(letters: int, rng: np.random.Generator) -> np.ndarray:
    """[V, V], rows sum to 1. Each letter has max(1, V // 4) banned successors, never itself, nor the next one on a
    random cycle through all letters: so the chain is ergodic. Each row is uniform on the simplex of what is left."""
    cycle = np.argsort(rng.random(letters))
    order = rng.random((letters, letters))
    order[cycle, np.roll(cycle, -1)] = order[np.arange(letters), np.arange(letters)] = 2.0
    weights = -np.log1p(-rng.random((letters, letters)))
    np.put_along_axis(weights, np.argsort(order)[:, : max(1, letters // 4)], 0.0, axis=1)
    return weights / weights.sum(axis=1, keepdims=True)


def _motifs(transitions: np.ndarray, num: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """[c, k]: one walk cut into pieces, without repeats, since a run of one letter is no pattern to find."""
    moves = np.where(np.eye(len(transitions), dtype=bool), 0.0, transitions)
    return _walks(moves, rng.random((1, num * length))).reshape(num, length)


def _offsets(room: int, num: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """[c, k]: 0, then a uniform choice of k - 1 of the places 1..room-1."""
    chosen = np.argsort(rng.random((num, room - 1)))[:, : length - 1] + 1
    return np.concatenate([np.zeros((num, 1), np.int64), np.sort(chosen)], axis=1)


def _walks(weights: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Markov chains [N, L] int64 by inversion of u [N, L] in [0, 1). weights [V, V]: rows up to a factor."""
    cumulative = weights.cumsum(axis=1)
    cumulative /= cumulative[:, -1:]  # ends in exactly 1, which u never reaches
    walks = np.empty(u.shape, np.int64)
    walks[:, 0] = u[:, 0] * len(weights)
    for i in range(1, u.shape[1]):
        walks[:, i] = (cumulative[walks[:, i - 1]] <= u[:, i, None]).sum(axis=1)
    return walks
