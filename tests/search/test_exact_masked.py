"""Accepted samples against enumerated laws: the finite M of every strategy, the limits, the weights, Z and the blend.

One problem: 3 letters, length 4, T = 6, a random network, random rewards, alpha = 1. Bounds are four standard errors.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dav_ray.search.best_of_n import BestOfN
from dav_ray.search.dav import Dav
from dav_ray.search.plain import NoSearch
from dav_ray.search.refine import Refine
from dav_ray.search.smc import Smc
from dav_ray.search.svdd import Svdd
from dav_ray.testing.base import BulkNoise, scorer
from dav_ray.testing.enumerable import (
    LENGTH,
    LETTERS,
    MASK,
    STATES,
    Scores,
    distance,
    floor,
    frequencies,
    law,
    misfit,
    model,
    state_index,
    tilted,
    weighted_share_variance,
)
from dav_ray.testing.soft_values import (
    ExactValues,
    accepted_chain,
    accepted_law,
    guessed_values,
    largest,
    refined_law,
    selection,
    soft_values,
)
from dav_ray.types import Trajectories

ALPHA, GAMMA = 1.0, 0.9
MODEL, REWARD = model(1, steps=6, micro_batch=100_000), Scores(1)
TARGET, Z = tilted(MODEL, REWARD, ALPHA)
EXACT = ExactValues(MODEL, REWARD, ALPHA)
PLAIN = Dav(1, ALPHA, GAMMA, False, 0.0)
FOUR = Dav(4, ALPHA, GAMMA, False, 0.0)


def run(search: Any, num: int, seed: int = 0, exact: bool = False) -> Trajectories:
    seen = EXACT if exact else MODEL
    return search(seen, scorer(EXACT if exact else REWARD), [""] * num, BulkNoise(seed, num))


def populations(search: Any, num: int, size: int, seed: int = 0) -> Trajectories:
    """Blanks say nothing to the model; different ones are different populations."""
    names = [" " * k for k in range(num) for _ in range(size)]
    return search(MODEL, scorer(REWARD), names, BulkNoise(seed, len(names)))


def weights(found: Trajectories) -> Tensor:
    assert found.log_weight is not None
    return found.log_weight.exp()


def excess(sample: Tensor, law: Tensor) -> tuple[float, float]:
    """Total variation between the target and a law, from samples: their share where that law is known to exceed the
    target, less the target's. Unbiased if the law is theirs. And its standard error."""
    more = law > TARGET
    share = float(frequencies(sample[:, :LENGTH])[more].sum())
    return share - float(TARGET[more].sum()), math.sqrt(share * (1 - share) / len(sample))


# ---- the enumeration itself ----


def test_selection_by_listing_all_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.softmax(torch.randn(2, 4, generator=generator, dtype=torch.float64), 1)
    weight = (3 * torch.randn(2, 4, generator=generator, dtype=torch.float64)).exp()
    weight[:, 1] = weight[:, 3]  # a tie
    drawn, best = torch.zeros_like(q), torch.zeros_like(q)
    for picks in itertools.product(range(4), repeat=3):
        chance, w = q[:, list(picks)].prod(1), weight[:, list(picks)]
        for row, m in itertools.product(range(2), range(3)):
            drawn[row, picks[m]] += chance[row] * w[row, m] / w[row].sum()
            ties = w[row] == w[row].max()
            best[row, picks[m]] += chance[row] * ties[m] / ties.sum()

    torch.testing.assert_close(selection(q, weight, 3), drawn, rtol=0, atol=1e-10)
    torch.testing.assert_close(largest(q, weight, 3), best, rtol=0, atol=1e-10)
    torch.testing.assert_close(selection(q, weight, 1), q, rtol=0, atol=1e-10)
    torch.testing.assert_close(selection(q, weight, 1e6), selection(q, weight, math.inf), rtol=0, atol=1e-4)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_the_soft_value_of_all_masks_is_log_z(beta: float) -> None:
    diffusion = model(1, moved=0.5, steps=6)
    values = soft_values(diffusion, REWARD, ALPHA, beta)

    assert values.shape == (7, 256)
    assert float(values[-1, -1]) == pytest.approx(math.log(tilted(diffusion, REWARD, ALPHA, beta)[1]), abs=1e-9)
    if beta == 0:
        torch.testing.assert_close(accepted_law(diffusion, values, math.inf), tilted(diffusion, REWARD, ALPHA)[0])


# ---- the law of what is accepted, at any M ----


def guessed(gamma: float, candidates: float, best: bool = False) -> Tensor:
    return accepted_law(MODEL, guessed_values(MODEL, REWARD, ALPHA, gamma), candidates, best)


def best_of_8() -> Tensor:
    return largest(law(MODEL).unsqueeze(0), REWARD.table.double().unsqueeze(0), 8)[0]


def refined() -> Tensor:
    chain = accepted_chain(MODEL, guessed_values(MODEL, REWARD, ALPHA, GAMMA), 4)
    return refined_law(MODEL, REWARD, ALPHA, chain, 3, 3)


STRATEGIES: dict[str, tuple[Any, Callable[[], Tensor]]] = {
    "none": (NoSearch(ALPHA, 0.0), lambda: law(MODEL)),
    "best_of_n": (BestOfN(8), best_of_8),
    "svdd": (Svdd(8, ALPHA), lambda: guessed(1.0, 8)),
    "svdd, best": (Svdd(8, ALPHA, choice="best"), lambda: guessed(1.0, 8, best=True)),
    "dav": (FOUR, lambda: guessed(GAMMA, 4)),
    "dav, gamma 0.7": (Dav(4, ALPHA, 0.7, False, 0.0), lambda: guessed(0.7, 4)),
    "refine": (Refine(FOUR, 3, 0.5), refined),
}

FEW = ("none", "svdd", "dav")  # the default suite's


@pytest.mark.parametrize(
    "name", [*FEW, *(pytest.param(n, marks=pytest.mark.thorough) for n in STRATEGIES if n not in FEW)]
)
def test_accepted_samples_follow_the_enumerated_law(name: str) -> None:
    search, expected = STRATEGIES[name][0], STRATEGIES[name][1]()
    found = run(search, 6000)

    assert float(expected.sum()) == pytest.approx(1, abs=1e-6)
    assert abs(misfit(found.sample, expected)) < 4
    assert name == "none" or misfit(found.sample, law(MODEL)) > 40  # otherwise the line above could not fail


@pytest.mark.thorough
def test_with_exact_values_the_distance_falls_like_one_over_m() -> None:
    """Law by law, and in the slope of log TV over log M, weighted by the errors of log TV."""
    many, values, x, y, w = 12_000, soft_values(MODEL, REWARD, ALPHA), [], [], []
    for candidates in (4, 8, 16):
        found = run(Dav(candidates, ALPHA, 1.0, False, 0.0), many, candidates, exact=True)
        expected = accepted_law(MODEL, values, candidates)
        assert abs(misfit(found.sample[:, :LENGTH], expected)) < 4
        measured, error = excess(found.sample, expected)
        x.append(math.log(candidates))
        y.append(math.log(measured))
        w.append((measured / error) ** 2)
    x, y, w = (torch.tensor(v, dtype=torch.float64) for v in (x, y, w))
    x -= (w * x).sum() / w.sum()
    slope, error = float((w * x * y).sum() / (w * x.square()).sum()), float((w * x.square()).sum() ** -0.5)

    assert error < 0.1
    assert -1.25 < slope < -0.8 and abs(slope + 1) < 4 * error


@pytest.mark.thorough
@pytest.mark.parametrize("gradient", [False, True])
def test_with_guesses_a_bias_stays_that_of_infinitely_many_candidates(gradient: bool) -> None:
    """The tilt is undone by the density ratio: the limit is the same with and without gradient."""
    limit = guessed(GAMMA, math.inf)
    found = run(Dav(32, ALPHA, GAMMA, gradient, 0.0), 3000)
    measured, error = excess(found.sample, limit)

    assert distance(limit, TARGET) > 0.15 > 15 * error
    assert abs(measured - distance(limit, TARGET)) < 4 * error


# ---- the weights ----


@pytest.mark.thorough
@pytest.mark.parametrize("gradient", [False, True])
def test_trajectory_weights_leave_nothing_but_noise(gradient: bool) -> None:
    found = run(Dav(4, ALPHA, GAMMA, gradient, 0.0), 10_000 if gradient else 20_000, 1)
    w = weights(found)
    noise, spread = floor(weighted_share_variance(TARGET, found.sample, w))

    assert distance(frequencies(found.sample), TARGET) > 0.18
    assert abs(distance(frequencies(found.sample, w), TARGET) - noise) < 4 * spread
    assert noise + 4 * spread < (0.08 if gradient else 0.05)


@pytest.mark.parametrize("search", [Smc(FOUR), Smc(FOUR, below=1.0, tempering="linear")])
def test_smc_leaves_nothing_but_noise(search: Smc) -> None:
    """Populations weighted by their Z_hat: the error of each share is known from how populations differ."""
    num, size = 80, 160
    found = populations(search, num, size)
    w = weights(found)
    z = w.reshape(num, size)[:, 0]
    shares = torch.stack([frequencies(part) for part in found.sample.split(size)])
    variance = (z.unsqueeze(1) * (shares - TARGET)).square().sum(0) / z.sum().square()
    noise, spread = floor(variance)

    assert torch.equal(w, z.repeat_interleave(size))
    assert abs(distance(frequencies(found.sample, w), TARGET) - noise) < 4 * spread
    assert noise + 4 * spread < 0.06


OFTEN = Smc(PLAIN, particles=4, resampling="stratified", below=1.0), 320, 32
TEMPERED = Smc(PLAIN, resampling="ssp", tempering="linear"), 250, 128


@pytest.mark.parametrize(
    "search, num, size",
    [
        pytest.param(Dav(4, ALPHA, 0.7, False, 0.0), 18_000, 1, id="dav"),
        pytest.param(Smc(PLAIN), 220, 160, id="smc"),
        pytest.param(*OFTEN, id="smc, stratified, every step", marks=pytest.mark.thorough),
        pytest.param(*TEMPERED, id="smc, ssp, linear", marks=pytest.mark.thorough),
    ],
)
def test_z_hat_is_unbiased(search: Any, num: int, size: int) -> None:
    found = run(search, num) if size == 1 else populations(search, num, size)
    z = weights(found)[::size] / Z
    error = float(z.std()) / num**0.5

    assert abs(float(z.mean()) - 1) < 4 * error
    assert error < 0.0075  # a bias of three per cent would be four of these


@pytest.mark.thorough
def test_log_z_hat_is_biased_down() -> None:
    """By half its variance where it is normal."""
    log_z = weights(populations(Smc(PLAIN), 800, 8))[::8].log() - math.log(Z)
    error = float(log_z.std()) / len(log_z) ** 0.5

    assert float(log_z.mean()) < -4 * error
    assert abs(float(log_z.mean() + log_z.var() / 2)) < 4 * error


# ---- what the M-step is given ----


@pytest.mark.thorough
def test_a_blend_has_the_enumerated_mean_at_every_state_and_less_noise() -> None:
    found = run(Dav(4, ALPHA, GAMMA, False, 0.0, blend=True), 20_000, 2)
    assert found.targets is not None
    onehot = nn.functional.one_hot(torch.tensor(STATES), LETTERS + 1)[..., :LETTERS].double()
    chain = accepted_chain(MODEL, guessed_values(MODEL, REWARD, ALPHA, GAMMA), 4)
    for step, (x, after, blend) in enumerate(zip(found.states[:-1], found.states[1:], found.targets, strict=True)):
        expected = torch.einsum("sn,nlv->slv", chain[step], onehot)
        winner = torch.where((x == MASK).unsqueeze(-1), onehot[state_index(after)], 0.0)
        size = torch.bincount(state_index(x), minlength=len(STATES)).reshape(-1, 1, 1)
        often = (size * expected > 20) & (torch.tensor(STATES) == MASK).unsqueeze(-1)
        means, variances = zip(*[moments(t.double(), x, size) for t in (winner, blend)], strict=True)
        z = ((means[1] - expected) / (variances[1] / size).sqrt())[often]

        assert len(z) >= 12
        assert abs(float(z.square().mean()) - 1) < 4 * math.sqrt(2 / len(z))
        noise = [float((size * v)[often].sum()) for v in variances]
        assert noise[1] < 0.15 * noise[0]


def moments(values: Tensor, x: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of values [N, L, V] by state [256, L, V]."""
    zeros, place = torch.zeros(len(STATES), LENGTH, LETTERS, dtype=torch.float64), state_index(x)
    mean = zeros.index_add(0, place, values) / size
    square = zeros.index_add(0, place, (values - mean[place]).square())
    return mean, square / (size - 1)
