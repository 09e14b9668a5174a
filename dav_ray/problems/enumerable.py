"""A masked model that is small enough to enumerate: 3 letters, length 4, so 256 states; its laws are written out."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from dav_ray.diffusion.masked import MaskedDiffusion
from dav_ray.sequences import Alphabet

LETTERS, LENGTH, STEPS = 3, 4, 4
MASK = LETTERS
STATES = list(itertools.product(range(LETTERS + 1), repeat=LENGTH))
INDEX = {state: i for i, state in enumerate(STATES)}
SEQUENCES = list(itertools.product(range(LETTERS), repeat=LENGTH))


class Table(nn.Module):
    """Logits for every state: [256, L, V+1]. Multilinear in a relaxed state, exact in a hard one."""

    def __init__(self, seed: int, scale: float = 1.5) -> None:
        super().__init__()
        values = torch.randn(len(STATES), LENGTH, LETTERS + 1, generator=torch.Generator().manual_seed(seed))
        self.linear = nn.Parameter(scale * values)

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        onehot = x if x.ndim == 3 else nn.functional.one_hot(x, LETTERS + 1).float()
        weight = torch.stack([onehot[:, place, torch.tensor(STATES)[:, place]] for place in range(LENGTH)]).prod(0)
        return torch.einsum("bs,slv->blv", weight, self.linear)


def model(seed: int = 0, moved: float = 0.0, timeless: bool = True, steps: int = STEPS) -> MaskedDiffusion:
    """All weights trainable; moved: how far the policy is from the pretrained model."""
    diffusion = MaskedDiffusion(
        Table(seed), alphabet=Alphabet("ABC"), length=LENGTH, steps=steps, time_conditioned=not timeless
    )
    diffusion.train_all_weights()
    with torch.no_grad():
        diffusion.trainable().linear += moved * Table(seed + 100).linear
    return diffusion


def letters(diffusion: MaskedDiffusion, reference: bool = False) -> list[list[list[float]]]:
    """p(x_0,l = v | state) for every state, by a softmax of the table's own numbers in float64."""
    module: Any = diffusion._reference_backbone if reference else diffusion.trainable()
    return torch.softmax(module.linear.detach().double()[..., :LETTERS], -1).tolist()


def transition(state: tuple[int, ...], after: tuple[int, ...], p: list[list[float]], unmask: float) -> float:
    """p(x_{t-1} = after | x_t = state), position by position."""
    total = 1.0
    for place, (old, new) in enumerate(zip(state, after, strict=True)):
        if old != MASK:
            total *= float(new == old)
        else:
            total *= 1 - unmask if new == MASK else unmask * p[place][new]
    return total


def unmask(t: int, steps: int = STEPS) -> float:
    """1 - s/t on the grid from 1 to 1e-5."""
    end = 1e-5
    return 1 - (end + (1 - end) * (t - 1) / steps) / (end + (1 - end) * t / steps)


def matrices(diffusion: MaskedDiffusion, beta: float = 0.0) -> list[Tensor]:
    """For t = T..1: p_theta(after | state)^(1-beta) p_theta0(after | state)^beta, [256, 256] float64."""
    policy, pretrained = letters(diffusion), letters(diffusion, reference=True)
    out = []
    for t in range(diffusion.steps, 0, -1):
        matrix = torch.zeros(len(STATES), len(STATES), dtype=torch.float64)
        for i, state in enumerate(STATES):
            for after in itertools.product(*[(c,) if c != MASK else range(LETTERS + 1) for c in state]):
                u = unmask(t, diffusion.steps)
                value = transition(state, after, policy[i], u) ** (1 - beta)
                matrix[i, INDEX[after]] = value * transition(state, after, pretrained[i], u) ** beta
        out.append(matrix)
    return out


def law(diffusion: MaskedDiffusion, beta: float = 0.0) -> Tensor:
    """Mass of every sequence [81] at the end of the chain, leftover masks filled with the most likely letters."""
    mass = torch.zeros(len(STATES), dtype=torch.float64)
    mass[INDEX[(MASK,) * LENGTH]] = 1
    for matrix in matrices(diffusion, beta):
        mass = mass @ matrix
    p, out = letters(diffusion), torch.zeros(len(SEQUENCES), dtype=torch.float64)
    for i, state in enumerate(STATES):
        full = tuple(
            max(range(LETTERS), key=lambda v: p[i][place][v]) if token == MASK else token  # noqa: B023
            for place, token in enumerate(state)
        )
        out[SEQUENCES.index(full)] += mass[i]
    return out


def frequencies(samples: Tensor, weights: Tensor | None = None) -> Tensor:
    """Share of each of the 81 sequences among samples [N, 4]."""
    place = (samples * torch.tensor([LETTERS**k for k in reversed(range(LENGTH))])).sum(1)
    found = torch.bincount(place, weights=weights, minlength=len(SEQUENCES)).double()
    return found / found.sum()


class Scores:
    """A reward for every sequence; differentiable in a relaxed one. infeasible: of these the reward is -inf."""

    differentiable = True

    def __init__(self, seed: int = 0, scale: float = 1.0, infeasible: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = scale * torch.randn(len(SEQUENCES), generator=generator)
        self.table[torch.rand(len(SEQUENCES), generator=generator) < infeasible] = -math.inf

    def __call__(self, samples: Tensor, conditions: Any) -> Tensor:
        if samples.ndim == 2:
            return self.table[(samples * torch.tensor([LETTERS**k for k in reversed(range(LENGTH))])).sum(1)]
        weight = torch.stack([samples[:, place, torch.tensor(SEQUENCES)[:, place]] for place in range(LENGTH)]).prod(0)
        return weight @ self.table
