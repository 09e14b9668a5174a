"""Every weighted search on a Gaussian model with a quadratic reward: mean, covariance and log Z are known.

Errors are measured from the samples, and bounded, so that each comparison could fail.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dav_ray.search.dav import Dav
from dav_ray.search.plain import NoSearch
from dav_ray.search.smc import Smc
from dav_ray.search.svdd import Svdd
from dav_ray.testing.base import BulkNoise, scorer
from dav_ray.testing.distances import Moments, moments
from dav_ray.testing.gaussian import LinearGaussian, Quadratic, populations
from dav_ray.types import Trajectories

CONDITION, ALPHA, GAMMA = "0.3", 0.3, 0.9
REWARD = Quadratic(centre=(1.0, -0.5), matrix=((2.0, 0.8), (0.8, 0.6)), offset=0.5)
MANY = 12_000


def toy() -> LinearGaussian:
    """After an M-step that moved every step the same way, so that the anchors differ."""
    model = LinearGaussian(steps=5)
    with torch.no_grad():
        model.shift.copy_(0.25 * model.schedule.std.float().unsqueeze(1) * torch.tensor([-1.0, 0.6]))
    return model


def dav(num: int = 3, gradient: bool = False, beta: float = 0.0) -> Dav:
    return Dav(num, ALPHA, GAMMA, gradient, beta)


def search(strategy: Any, size: int = 1, many: int = MANY) -> tuple[Trajectories, Tensor]:
    """What is found by many trajectories in populations of `size`, and whose population each belongs to."""
    conditions = populations(CONDITION, many // size, size)
    found = strategy(toy(), scorer(REWARD), conditions, BulkNoise(7, many))
    return found, torch.arange(many) // size


def check(found: Moments, beta: float = 0.0) -> None:
    """All within four standard errors, and these small."""
    goal = toy().tilted(REWARD, ALPHA, CONDITION, beta)
    assert largest((found.mean - goal.means[0]) / found.mean_error) < 4
    assert largest((found.covariance - goal.covariance) / found.covariance_error) < 4
    assert abs(found.log_z - float(goal.log_z)) / found.log_z_error < 4
    assert found.mean_error.max() < 0.013 and found.covariance_error.max() < 0.013 and found.log_z_error < 0.02


def largest(x: Tensor) -> float:
    return float(x.abs().max())


@pytest.mark.parametrize("beta", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("gradient", [False, True])
def test_weighted_dav_has_the_tilted_mean_covariance_and_normaliser(gradient: bool, beta: float) -> None:
    found, _ = search(dav(3, gradient, beta))
    check(moments(found.sample, found.log_weight), beta)


@pytest.mark.parametrize("strategy", [NoSearch(ALPHA, 0.0), Svdd(3, ALPHA)], ids=["none", "svdd"])
def test_so_have_the_searches_without_tilt(strategy: Any) -> None:
    found, _ = search(strategy, many=2 * MANY)
    check(moments(found.sample, found.log_weight))


@pytest.mark.thorough
@pytest.mark.parametrize("num, gradient, beta", [(1, True, 0.3), (3, False, 1.0)])
def test_smc_has_them_too_and_its_normaliser_is_unbiased(num: int, gradient: bool, beta: float) -> None:
    """Of small populations, resampled at every step: E[Z_hat] = Z, while log Z_hat is biased down."""
    found, of = search(Smc(dav(num, gradient, beta), below=1.0), size=6, many=9000)
    assert found.log_weight is not None
    check(moments(found.sample, found.log_weight, of), beta)
    each = found.log_weight[::6]
    goal = float(toy().tilted(REWARD, ALPHA, CONDITION, beta).log_z)
    assert (float(each.mean()) - goal) / (float(each.std()) / len(each) ** 0.5) < -4


@pytest.mark.parametrize("tempering", ["linear", "adaptive(0.95)"])
def test_smc_has_them_whatever_the_tempering(tempering: str) -> None:
    found, of = search(Smc(dav(1, True), tempering=tempering, below=0.9), size=200)
    assert found.log_weight is not None
    check(moments(found.sample, found.log_weight, of))
    # in populations as large as these the draws themselves have the law, each counted once
    accepted, goal = moments(found.sample, None, of), toy().tilted(REWARD, ALPHA, CONDITION)
    assert largest((accepted.mean - goal.means[0]) / accepted.mean_error) < 4


def test_without_the_weights_the_local_choice_is_biased() -> None:
    """At small M, with or without gradient: what the tests above would see if the weights were lost."""
    goal = toy().tilted(REWARD, ALPHA, CONDITION)
    for gradient in (False, True):
        found, _ = search(dav(3, gradient))
        accepted = moments(found.sample)
        assert largest((accepted.mean - goal.means[0]) / accepted.mean_error) > 8


def test_each_anchor_is_a_law_of_its_own() -> None:
    """So far apart that a search for the wrong one would fail above."""
    goals = [toy().tilted(REWARD, ALPHA, CONDITION, beta) for beta in (0.0, 0.3, 1.0)]
    for a, b in ((0, 1), (1, 2)):
        assert largest(goals[a].means - goals[b].means) > 0.05
        assert abs(float(goals[a].log_z - goals[b].log_z)) > 0.08


def test_the_gradient_evens_the_weights() -> None:
    """It is worth its evaluations where M is small: the proposal is closer to the tilted law."""
    shares = []
    for gradient in (False, True):
        found, _ = search(dav(1, gradient))
        assert found.log_weight is not None
        shares.append(float(found.log_weight.exp().mean() ** 2 / found.log_weight.exp().square().mean()))
    assert shares[1] > 1.5 * shares[0]


def test_the_closed_form_is_the_integral() -> None:
    """Tilted means, covariance and log Z of two components, by quadrature on a plane."""
    means = torch.tensor([[0.3, -0.2], [1.5, 0.4]], dtype=torch.float64)
    covariance = torch.tensor([[0.7, 0.2], [0.2, 0.4]], dtype=torch.float64)
    tilted = REWARD.tilt(means, covariance, ALPHA)
    axis = torch.linspace(-9, 9, 901, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    for k, mean in enumerate(means):
        log_p = torch.distributions.MultivariateNormal(mean, covariance).log_prob(x)
        expected = (log_p.exp() * REWARD(x)).sum() * (axis[1] - axis[0]) ** 2
        torch.testing.assert_close(REWARD.expected(means, covariance)[k], expected)
        mass = (log_p + REWARD(x) / ALPHA).exp() * (axis[1] - axis[0]) ** 2
        assert math.log(float(mass.sum())) == pytest.approx(float(tilted.log_z[k]), abs=1e-9)
        share = mass / mass.sum()
        torch.testing.assert_close(share @ x, tilted.means[k])
        gap = x - tilted.means[k]
        torch.testing.assert_close((share.unsqueeze(1) * gap).T @ gap, tilted.covariance)
