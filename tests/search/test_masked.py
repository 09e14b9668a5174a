"""DAV's E-step on a masked model that can be enumerated: weights, laws, and what is evaluated how often."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dav_ray.diffusion.masked.alphabet import Alphabet
from dav_ray.diffusion.masked.model import MaskedDiffusion
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.search.dav import Dav
from dav_ray.search.states import Reuse
from dav_ray.testing.base import BulkNoise, scorer
from dav_ray.testing.enumerable import MASK, SEQUENCES, Scores, frequencies, law, model
from dav_ray.types import Trajectories

ALPHA, GAMMA, MANY = 1.5, 0.9, 10_000


def search(diffusion: Any, reward: Any, num: int, gradient: bool = False, beta: float = 0.0) -> Trajectories:
    return Dav(num, ALPHA, GAMMA, gradient, beta)(diffusion, scorer(reward), [""] * MANY, BulkNoise(num, MANY))  # type: ignore[arg-type]


def check_tilted_law(found: Trajectories, diffusion: MaskedDiffusion, reward: Scores, beta: float) -> None:
    """E[W] = Z and the weighted samples follow anchor exp(r / alpha) / Z, both enumerated."""
    tilted = law(diffusion, beta) * (reward.table.double() / ALPHA).exp()
    z = float(tilted.sum())
    assert found.log_weight is not None
    w = found.log_weight.exp()
    assert abs(float(w.mean()) - z) < 4 * float(w.std()) / MANY**0.5
    assert float(w.std()) / MANY**0.5 < 0.06 * z  # otherwise the line above could not fail
    distance = 0.5 * float((frequencies(found.sample, w) - tilted / z).abs().sum())
    effective = float(w.sum() ** 2 / w.square().sum())
    assert distance < 1.2 * 0.5 * float((tilted / z * (1 - tilted / z) * 2 / torch.pi / effective).sqrt().sum()) + 0.01


@pytest.mark.parametrize("beta", [0.0, *(pytest.param(beta, marks=pytest.mark.thorough) for beta in (1.0, 0.3))])
@pytest.mark.parametrize("num, gradient", [(1, False), (4, False), (4, True)])
def test_the_weights_are_proper(num: int, gradient: bool, beta: float) -> None:
    diffusion, reward = model(moved=0.3), Scores()
    check_tilted_law(search(diffusion, reward, num, gradient, beta), diffusion, reward, beta)


@pytest.mark.thorough
@pytest.mark.parametrize("num", [1, 4])
def test_the_weights_are_proper_where_sequences_are_infeasible(num: int) -> None:
    """Minus infinity at the end is a weight of zero; on the way only a guess, whose value is finite."""
    diffusion, reward = model(), Scores(infeasible=0.4)
    found = search(diffusion, reward, num)
    check_tilted_law(found, diffusion, reward, 0.0)
    assert found.log_weight is not None
    assert torch.equal(found.log_weight.isneginf(), found.reward.isneginf())
    assert 20 < int(found.reward.isneginf().sum()) < MANY - 20


@pytest.mark.thorough
def test_more_candidates_come_closer_to_the_tilted_law() -> None:
    diffusion, reward = model(), Scores(scale=2.0)
    tilted = law(diffusion) * (reward.table.double() / ALPHA).exp()
    tilted /= tilted.sum()
    distances = [
        0.5 * float((frequencies(search(diffusion, reward, num).sample) - tilted).abs().sum()) for num in (1, 2, 8)
    ]
    assert distances[0] > 1.1 * distances[1] > 1.1 * 1.1 * distances[2]


@pytest.mark.parametrize("gradient", [False, True])
def test_equal_states_are_evaluated_once_and_nothing_else_changes(gradient: bool) -> None:
    once, often = model(moved=0.3), model(moved=0.3)
    often.timeless = False  # the same network, not known to be timeless
    noise = KeyedNoise(1, 1, range(50))
    runs = [Dav(6, ALPHA, GAMMA, gradient, 0.0)(m, scorer(Scores()), [""] * 50, noise) for m in (once, often)]

    for name in ("states", "sample", "reward", "log_weight", "ess"):
        torch.testing.assert_close(getattr(runs[0], name), getattr(runs[1], name), rtol=1e-6, atol=1e-6)
    assert runs[1].cost.network >= 50 * (1 + 3 * 6)
    assert runs[0].cost.network < 0.8 * runs[1].cost.network
    assert runs[0].cost.reward < 0.8 * runs[1].cost.reward


class Uniform(nn.Module):
    """Knows nothing: every letter alike."""

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        return torch.zeros(*x.shape, 5)


@pytest.mark.thorough
def test_evaluations_at_the_size_of_the_benchmark() -> None:
    """L = 200, T = 128, M = 10: 1 + (T - 1) M = 1271 if every candidate were evaluated; about 1007 when equal ones are
    evaluated once: a candidate equals its parent with probability (1 - 1/t)^n, n the masks left, about e^(-200/128).
    (A reward that is wary of letters keeps masks for longer, and equal states become rarer.)"""
    diffusion = MaskedDiffusion(Uniform(), alphabet=Alphabet.of("dna"), length=200, steps=128, micro_batch=1000)
    found = Dav(10, 1e6, 1.0, False, 0.0)(diffusion, scorer(Distance()), [""] * 20, KeyedNoise(0, 1, range(20)))
    assert found.cost.network / 20 == pytest.approx(1007, abs=15)
    assert found.cost.reward / 20 < 1030


class Distance:
    """Minus the share of letters that are not the first."""

    differentiable = False

    def __call__(self, samples: Tensor, conditions: Any) -> Tensor:
        return -(samples != 0).double().mean(1)


def test_reuse_names_each_candidates_first_equal() -> None:
    parents = torch.tensor([[0, 0], [1, 1]])
    candidates = torch.tensor([[[0, 1], [0, 0], [0, 1], [2, 2]], [[3, 1], [3, 1], [3, 1], [0, 1]]])
    found = Reuse.of(parents, candidates)

    assert found.rows.tolist() == [0, 3, 4, 7]  # of the 8 candidates; the pool is 2 parents and these
    assert found.source.tolist() == [2, 0, 2, 3, 4, 4, 4, 5]
    assert found.parents.tolist() == [0]


def test_completed_targets_are_the_winners_x0() -> None:
    found = Dav(4, ALPHA, GAMMA, False, 0.0, complete=True)(
        model(), scorer(Scores()), [""] * 30, KeyedNoise(0, 1, range(30))
    )
    assert found.targets is not None and found.targets.shape == (4, 30, 4)
    assert (found.targets != MASK).all()
    assert torch.equal(found.targets[-1], found.sample)
    kept = found.states[1:] != MASK
    assert torch.equal(found.targets[kept], found.states[1:][kept])


def test_a_blend_has_the_winners_mean_and_less_noise() -> None:
    """Expected counts at x_T, where all parents are alike: the gradient is linear in them, so means must agree."""
    found = Dav(4, ALPHA, GAMMA, False, 0.0, blend=True)(
        model(),
        scorer(Scores(scale=2.0)),
        [""] * MANY,
        BulkNoise(2, MANY),  # type: ignore[arg-type]
    )
    assert found.targets is not None
    winner = nn.functional.one_hot(found.states[1], 4)[..., :3].double()
    blend = found.targets[0].double()
    error = (winner.var(0) / MANY + blend.var(0) / MANY).sqrt()

    assert ((winner.mean(0) - blend.mean(0)).abs() < 4 * error).all()
    assert blend.var(0).sum() < 0.6 * winner.var(0).sum()
    assert len(SEQUENCES) == 81
