"""Random numbers that depend on what is drawn, never on who draws it.

Every trajectory has streams of its own, so that batch size, worker and retry change nothing. They are drawn on the CPU
whatever the device: a GPU then sees the same noise as a laptop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Draws(Protocol):
    """Random numbers for B trajectories, one independent stream each."""

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal, [B, *shape] float32."""
        ...

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Uniform on [0, 1), [B, *shape] float64."""
        ...


class Noise(Protocol):
    """The noise of B trajectories over all steps."""

    def at(self, t: int) -> Draws:
        """What is needed to draw x_t (the prior at t = T) and to choose among its candidates."""
        ...


class Streams:
    """`Draws` from one torch generator per trajectory."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self._generators = generators

    def normal(self, shape: Sequence[int]) -> Tensor:
        return torch.stack([torch.randn(tuple(shape), generator=g) for g in self._generators])

    def uniform(self, shape: Sequence[int]) -> Tensor:
        return torch.stack([torch.rand(tuple(shape), generator=g, dtype=torch.float64) for g in self._generators])


class KeyedNoise:
    """The search's noise. Key of the stream that draws x_t: (run seed, round, trajectory, t, copy).

    `copies` > 1 makes the B trajectories B * copies independent ones, the copies of one trajectory adjacent.
    """

    def __init__(self, seed: int, round: int, trajectories: Sequence[int], copies: int = 1, first: int = 0) -> None:
        self._seed, self._round, self._trajectories = seed, round, tuple(trajectories)
        self._copies = range(first, first + copies)

    def copies(self, num: int) -> KeyedNoise:
        return KeyedNoise(self._seed, self._round, self._trajectories, num)

    def take(self, rows: Sequence[int]) -> KeyedNoise:
        """The noise of the chosen trajectories alone."""
        chosen = tuple(self._trajectories[i] for i in rows)
        return KeyedNoise(self._seed, self._round, chosen, len(self._copies), self._copies.start)

    def nth(self, copy: int) -> KeyedNoise:
        """Other noise for the same trajectories: that of one copy alone; 0 is this one."""
        return KeyedNoise(self._seed, self._round, self._trajectories, first=copy)

    def at(self, t: int) -> Draws:
        keys = [(self._seed, self._round, i, t, c) for i in self._trajectories for c in self._copies]
        return Streams([generator(*key) for key in keys])


class PipelineNoise:
    """The noise that a diffusers pipeline draws when called with `generator=[torch.Generator().manual_seed(s), ...]`:
    one generator per sample, x_T first and then one draw per step. `at` must be called for t = T, T-1, ..., 0."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    def at(self, t: int) -> Draws:
        return Streams(self._generators)


def generator(*key: int) -> torch.Generator:
    """The stream of a key, the same everywhere; neighbouring keys give unrelated streams.

    key: integers in 0 .. 2^32 - 1, at least four: numpy fills shorter keys with zeros and cuts larger integers in two.
    """
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) % 2**63)
