"""Steps without a score: which they are, what they save, and what becomes of the law."""

from __future__ import annotations

import math

import pytest
import torch

from dav_ray.config.build import strategy
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.search.dav import Dav
from dav_ray.search.kinds import change, counts, unscored
from dav_ray.search.options import Search
from dav_ray.testing.base import BulkNoise, scorer
from dav_ray.testing.enumerable import (
    STEPS,
    Scores,
    distance,
    floor,
    frequencies,
    misfit,
    model,
    tilted,
    weighted_share_variance,
)
from dav_ray.testing.gaussian import Bowl, LinearGaussian
from dav_ray.testing.soft_values import accepted_law, guessed_values
from dav_ray.types import Cost, Trajectories

ALPHA, GAMMA = 1.0, 0.9
MODEL, REWARD = model(1, steps=6, micro_batch=100_000), Scores(1)
TARGET, Z = tilted(MODEL, REWARD, ALPHA)


def accepted(skipped: set[int], num: int, candidates: int = 4) -> Trajectories:
    search = Dav(candidates, ALPHA, GAMMA, False, 0.0, unscored=frozenset(skipped))
    return search(MODEL, scorer(REWARD), [""] * num, BulkNoise(3, num))  # type: ignore[arg-type]


# ---- which steps ----


def test_every_nth_step_counts_from_the_end() -> None:
    assert unscored(Search(steps=8, score_every=3)) == {1, 2, 4, 5, 7}
    assert unscored(Search(steps=8)) == set()


def test_negligible_steps_are_the_early_ones() -> None:
    """gamma^t spread / alpha = 8 * 0.5^t: tanh of a quarter of it is tanh(1) at t = 1, tanh(.5), tanh(.25), ..."""
    search = Search(steps=7, alpha=0.5, gamma=0.5, spread=4.0, negligible=math.tanh(0.2))
    assert unscored(search) == {4, 5, 6}
    assert change(search, 4) == pytest.approx(math.tanh(0.125), rel=1e-12)


def test_the_bound_holds_for_any_choice_and_is_reached() -> None:
    """Total variation of a choice by softmax(V) and one by softmax(V'), where V - V' has range delta."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(2000, 5, generator=generator, dtype=torch.float64)
    delta = 3 * torch.rand(2000, 1, generator=generator, dtype=torch.float64)
    moved = base + delta * torch.rand(2000, 5, generator=generator, dtype=torch.float64)
    gap = 0.5 * (torch.softmax(moved, 1) - torch.softmax(base, 1)).abs().sum(1, keepdim=True)
    most = torch.softmax(torch.tensor([[0.75, 0.0], [-0.75, 0.0]], dtype=torch.float64), 1)

    assert (gap <= torch.tanh(delta / 4)).all()
    assert float(most[0, 0] - most[1, 0]) == pytest.approx(math.tanh(1.5 / 4), rel=1e-12)


# ---- what they save ----


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"score_every": 2}, {"score_every": 5}, {"score_every": 99}, {"spread": 1.0, "negligible": 0.3}],
    ids=str,
)
def test_evaluations_are_those_that_are_counted(gradient: bool, options: dict) -> None:
    search = Search(candidates=4, steps=12, alpha=ALPHA, gamma=0.8, gradient=gradient, **options)
    found = strategy(search)(LinearGaussian(steps=12), scorer(Bowl()), ["0.3"], KeyedNoise(0, 1, [0]))
    network, backward, rewards = counts(search)

    assert found.cost == Cost(network=network, backward=backward, reward=rewards)
    if not options:
        assert network == (12 if gradient else 1) + 11 * 4


def test_half_the_scores_cost_little_more_than_half() -> None:
    """T = 50, M = 16: 24 states with 16 candidates, 25 with one, and x_T."""
    assert counts(Search(candidates=16, steps=50, score_every=2)) == (1 + 24 * 16 + 25, 0, 25 * 16)


# ---- what becomes of the law ----


@pytest.mark.parametrize("skipped", [{1, 3, 5}, {3, 4, 5}, {1, 2, 3, 4, 5}], ids=str)
def test_accepted_samples_follow_the_enumerated_law(skipped: set[int]) -> None:
    values = guessed_values(MODEL, REWARD, ALPHA, GAMMA)
    expected = accepted_law(MODEL, values, 4, unscored=frozenset(skipped))
    found = accepted(skipped, 6000)

    assert abs(misfit(found.sample, expected)) < 4
    assert misfit(found.sample, accepted_law(MODEL, values, 4)) > 8  # otherwise the line above could not fail


def test_the_weights_stay_proper() -> None:
    found = accepted({1, 3, 4}, 20_000)
    assert found.log_weight is not None
    w = found.log_weight.exp()
    noise, spread = floor(weighted_share_variance(TARGET, found.sample, w))

    assert abs(distance(frequencies(found.sample, w), TARGET) - noise) < 4 * spread
    assert abs(float(w.mean()) / Z - 1) < 4 * float(w.std()) / Z / len(w) ** 0.5
    assert noise + 4 * spread < 0.05


def test_negligible_steps_change_the_law_by_less_than_their_bounds() -> None:
    """The enumerated laws with and without them; the bound is the sum over steps."""
    spread = float(REWARD.table.max() - REWARD.table.min())
    search = Search(steps=6, candidates=4, alpha=ALPHA, gamma=0.3, spread=spread, negligible=0.2)
    skipped, values = unscored(search), guessed_values(MODEL, REWARD, ALPHA, 0.3)
    gap = distance(accepted_law(MODEL, values, 4, unscored=skipped), accepted_law(MODEL, values, 4))

    assert skipped == {2, 3, 4, 5}
    assert 1e-4 < gap < sum(change(search, t) for t in skipped)


@pytest.mark.parametrize("blend", [False, True])
def test_targets_stand_where_their_steps_stand(blend: bool) -> None:
    search = Dav(4, ALPHA, GAMMA, True, 0.0, blend=blend, unscored=frozenset({1, 2}))
    found = search(LinearGaussian(steps=STEPS), scorer(Bowl()), ["0.3", "0.1"], KeyedNoise(0, 1, [0, 1]))

    assert found.states.shape == (STEPS + 1, 2, 2)
    if blend:
        assert found.targets is not None and found.targets.shape == (STEPS, 2, 2)
        walked = [torch.equal(a, b) for a, b in zip(found.targets, found.states[1:], strict=True)]
        assert walked == [False, True, True, False]  # x_3, x_2, x_1, x_0


def test_equal_states_are_evaluated_once_here_too() -> None:
    """A timeless model: never more than what is counted for one with time."""
    found = accepted({1, 3, 5}, 50)
    most = counts(Search(steps=6, candidates=4, score_every=2))
    assert found.cost.network < 50 * most[0]
