"""A masked model small enough to enumerate: 3 letters, length 4, so 256 states and 81 sequences. Its laws are exact.

A state is a tuple of `LENGTH` tokens, 0 .. LETTERS - 1 or the mask. States and sequences are counted in lexical order,
the last place running fastest: number `INDEX[state]` is the state read in base 4, and likewise for sequences in base 3.
Laws are written out position by position in float64, without the code that they serve to test.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dav_ray.diffusion.masked.alphabet import Alphabet
from dav_ray.diffusion.masked.model import MaskedDiffusion

LETTERS, LENGTH, STEPS = 3, 4, 4
MASK = LETTERS
STATES = list(itertools.product(range(LETTERS + 1), repeat=LENGTH))
INDEX = {state: i for i, state in enumerate(STATES)}
SEQUENCES = list(itertools.product(range(LETTERS), repeat=LENGTH))


class Table(nn.Module):
    """A network that is a table: logits [256, L, V+1], drawn from N(0, scale^2).

    Tokens [B, L] are looked up. A relaxed state [B, L, V+1] gets the multilinear interpolation of the table, which is
    the same number at a one-hot state, and has a gradient there.
    """

    def __init__(self, seed: int, scale: float = 1.5) -> None:
        super().__init__()
        values = torch.randn(len(STATES), LENGTH, LETTERS + 1, generator=torch.Generator().manual_seed(seed))
        self.linear = nn.Parameter(scale * values)

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """x [B, L] tokens, or [B, L, V+1] relaxed -> logits [B, L, V+1]; neither time nor class matters."""
        if x.ndim == 2:
            return nn.functional.embedding(state_index(x), self.linear.flatten(1)).unflatten(1, self.linear.shape[1:])
        return (_products(x) @ self.linear.flatten(1)).unflatten(1, self.linear.shape[1:])


def model(
    seed: int = 0, moved: float = 0.0, timeless: bool = True, steps: int = STEPS, micro_batch: int = 128
) -> MaskedDiffusion:
    """All weights trainable; moved: how far the policy's logits are from the pretrained model's, in its own scale."""
    table = Table(seed)
    diffusion = MaskedDiffusion(
        table,
        alphabet=Alphabet("ABC"),
        length=LENGTH,
        steps=steps,
        time_conditioned=not timeless,
        micro_batch=micro_batch,
    )
    diffusion.train_all_weights()
    with torch.no_grad():
        table.linear.add_(moved * Table(seed + 100).linear)
    return diffusion


def state_index(x: Tensor) -> Tensor:
    """Numbers [...] of states [..., L] in `STATES`."""
    return _number(x, LETTERS + 1)


def sequence_index(x: Tensor) -> Tensor:
    """Numbers [...] of sequences [..., L] without masks in `SEQUENCES`."""
    return _number(x, LETTERS)


def _number(x: Tensor, base: int) -> Tensor:
    number = x[..., 0].long()
    for place in range(1, LENGTH):
        number = base * number + x[..., place]
    return number


def _products(relaxed: Tensor) -> Tensor:
    """[B, L, K] -> [B, K^L]: relaxed[b, 0, s_0] ... relaxed[b, L-1, s_{L-1}] for every s, in lexical order."""
    product = relaxed[:, 0]
    for place in range(1, LENGTH):
        product = (product.unsqueeze(2) * relaxed[:, place].unsqueeze(1)).flatten(1)
    return product


# ---- laws ----


def letters(diffusion: MaskedDiffusion, reference: bool = False) -> list[list[list[float]]]:
    """p(x_0,l = v | state) [256][L][V], by a softmax of the table's own numbers in float64."""
    module: Any = diffusion.called(reference=True) if reference else diffusion.trainable()
    return torch.softmax(module.linear.detach().double()[..., :LETTERS], -1).tolist()


def transition(state: Sequence[int], after: Sequence[int], p: Sequence[Sequence[float]], unmask: float) -> float:
    """p(x_{t-1} = after | x_t = state) = product over positions; p [L][V] as `letters` gives it for `state`.

    A mask stays with probability 1 - unmask and becomes v with probability unmask * p[l][v]; a letter never changes.
    """
    total = 1.0
    for place, (old, new) in enumerate(zip(state, after, strict=True)):
        if old != MASK:
            total *= float(new == old)
        else:
            total *= 1 - unmask if new == MASK else unmask * p[place][new]
    return total


def unmask(t: int, steps: int = STEPS) -> float:
    """How likely a mask of x_t is gone in x_{t-1}: 1 - time(t-1) / time(t), time linear in t from 1e-5 to 1."""
    end = 1e-5
    return 1 - (end + (1 - end) * (t - 1) / steps) / (end + (1 - end) * t / steps)


def matrices(diffusion: MaskedDiffusion, beta: float = 0.0) -> list[Tensor]:
    """For t = T..1: p_theta(after | state)^(1-beta) p_theta0(after | state)^beta, [256, 256] float64, rows states.

    Rows sum to 1 where beta is 0 or 1, and to less in between: the geometric anchor is not normalised per step.
    """
    both = [torch.tensor(letters(diffusion, reference), dtype=torch.float64) for reference in (False, True)]
    out = []
    for t in range(diffusion.steps, 0, -1):
        policy, pretrained = (_transitions(p, unmask(t, diffusion.steps)) for p in both)
        out.append(policy ** (1 - beta) * pretrained**beta)
    return out


def _transitions(p: Tensor, unmask: float) -> Tensor:
    """`transition` between all states [256, 256]; p [256, L, V]."""
    states = torch.tensor(STATES)
    outcomes = torch.cat([unmask * p, torch.full_like(p[..., :1], 1 - unmask)], dim=-1)
    total = torch.ones(len(STATES), len(STATES), dtype=torch.float64)
    for place in range(LENGTH):
        old, new = states[:, place], states[:, place]
        total *= torch.where(old.unsqueeze(1) == MASK, outcomes[:, place, new], (old.unsqueeze(1) == new).double())
    return total


def completions(diffusion: MaskedDiffusion) -> Tensor:
    """For every state the number of the sequence [256] that it becomes when its masks get their likeliest letters: the
    guess x0_hat of a state, and what the final clean-up makes of masks that the last step left."""
    p = torch.tensor(letters(diffusion))
    states = torch.tensor(STATES)
    return sequence_index(torch.where(states == MASK, p.argmax(-1), states))


def carried(diffusion: MaskedDiffusion, chain: Sequence[Tensor], mass: Tensor | None = None) -> Tensor:
    """Mass of every sequence [..., 81] after the steps of `chain` (each [256, 256], down to t = 1) and the clean-up;
    mass [..., 256]: where they start, by default at all masks."""
    if mass is None:
        mass = torch.eye(len(STATES), dtype=torch.float64)[INDEX[(MASK,) * LENGTH]]
    for matrix in chain:
        mass = mass @ matrix
    return mass.new_zeros(*mass.shape[:-1], len(SEQUENCES)).index_add(-1, completions(diffusion), mass)


def law(diffusion: MaskedDiffusion, beta: float = 0.0) -> Tensor:
    """Mass of every sequence [81] under the sampler: its steps, not the continuous time that they stand for. Sums to 1
    where beta is 0 or 1, else to the normaliser of the geometric anchor."""
    return carried(diffusion, matrices(diffusion, beta))


def tilted(diffusion: MaskedDiffusion, reward: Scores, alpha: float, beta: float = 0.0) -> tuple[Tensor, float]:
    """The law that the search aims at, anchor(x_0) exp(r(x_0) / alpha) / Z [81], and Z."""
    mass = law(diffusion, beta) * (reward.table.double() / alpha).exp()
    z = float(mass.sum())
    return mass / z, z


# ---- samples ----


def frequencies(samples: Tensor, weights: Tensor | None = None) -> Tensor:
    """Share of each of the 81 sequences among samples [N, L], by count or by weights [N]; float64, sums to 1."""
    found = torch.bincount(sequence_index(samples), weights=weights, minlength=len(SEQUENCES)).double()
    return found / found.sum()


def distance(p: Tensor, q: Tensor) -> float:
    """Total variation, sum |p - q| / 2."""
    return 0.5 * float((p - q).abs().sum())


def share_variance(p: Tensor, num: float) -> Tensor:
    """Variance [81] of each share among `num` exact draws from p."""
    return p * (1 - p) / num


def weighted_share_variance(p: Tensor, samples: Tensor, weights: Tensor) -> Tensor:
    """Variance [81] of each share in independent samples [N, L] with weights W [N] whose law is p."""
    return indexed_share_variance(p, sequence_index(samples), weights)


def indexed_share_variance(p: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """The same for any finite law p [S] and draws by number, index [N] (delta method):
    sum_n W_n^2 (1[x_n = i] - p_i)^2 / (sum_n W_n)^2."""
    square = torch.bincount(index, weights=weights.square(), minlength=len(p))
    return (square * (1 - 2 * p) + p.square() * square.sum()) / weights.sum().square()


def floor(variance: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of `distance` to the true law where nothing but noise is left: the shares' errors are
    normal with variance v_i [81], so sum sqrt(2 v / pi) / 2, and sqrt(sum (1 - 2 / pi) v) / 2 if they are independent
    (they sum to zero, which makes it a little less)."""
    mean = 0.5 * (2 * variance / math.pi).sqrt().sum()
    return float(mean), 0.5 * float(((1 - 2 / math.pi) * variance.sum()).sqrt())


def misfit(samples: Tensor, p: Tensor) -> float:
    """How far samples [N, L] are from draws of p [81], as a standard normal number: (chi^2 - k) / sqrt(2 k) with k
    degrees of freedom. Sequences that are expected fewer than 5 times count as one."""
    expected = len(samples) * p
    found, rare = frequencies(samples) * len(samples), expected < 5
    pooled = [torch.cat([x[~rare], x[rare].sum().reshape(1)]) for x in (found, expected)]
    chi2 = float(((pooled[0] - pooled[1]).square() / pooled[1].clamp_min(1e-9)).sum())
    freedom = len(pooled[0]) - 1
    return (chi2 - freedom) / math.sqrt(2 * freedom)


class Scores:
    """A reward for every sequence, N(0, scale^2); multilinear in a relaxed one. infeasible: the share of sequences
    whose reward is minus infinity."""

    differentiable = True

    def __init__(self, seed: int = 0, scale: float = 1.0, infeasible: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = scale * torch.randn(len(SEQUENCES), generator=generator)
        self.table[torch.rand(len(SEQUENCES), generator=generator) < infeasible] = -math.inf

    def __call__(self, samples: Tensor, conditions: Any) -> Tensor:
        if samples.ndim == 2:
            return self.table[sequence_index(samples)]
        return _products(samples) @ self.table
