"""Refine: what re-noising is, what it costs, and that it works where x0_hat says little."""

from __future__ import annotations

import pytest
import torch

from dav_ray.config.build import strategy
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.search.dav import Dav
from dav_ray.search.options import Search as SearchConfig
from dav_ray.search.refine import Refine
from dav_ray.testing.base import BulkNoise, scorer
from dav_ray.testing.enumerable import MASK, Scores, model
from dav_ray.testing.gaussian import Bowl, LinearGaussian
from dav_ray.types import Cost

MANY = 20_000
CONDITIONS = ["0.3"] * 40


def test_every_repeat_keeps_or_raises_where_alpha_is_small() -> None:
    rewards = []
    for repeats in (1, 2, 4, 8):
        search = Refine(Dav(2, 1e-6, 1.0, False, 0.0), repeats, 0.5)
        rewards.append(search(LinearGaussian(4), scorer(Bowl()), CONDITIONS, KeyedNoise(0, 1, range(40))).reward)
    for before, after in zip(rewards, rewards[1:], strict=False):
        assert (after >= before).all() and (after > before).any()


def test_trajectories_are_whole_and_end_in_their_sample() -> None:
    """States lead from x_T to x_0; what was re-noised has fewer masks the later it is."""
    diffusion = model(steps=6)
    found = Refine(Dav(3, 0.5, 1.0, False, 0.0), 5, 0.5)(
        diffusion, scorer(Scores()), [""] * 40, KeyedNoise(0, 1, range(40))
    )
    masks = (found.states == MASK).sum(-1)

    assert found.states.shape == (7, 40, 4) and found.log_weight is None
    assert (masks[:-1] >= masks[1:]).all() and (masks[0] >= 3).all()
    kept = found.states[:-1] != MASK
    assert torch.equal(found.states[:-1][kept], found.states[1:][kept])  # a token that stands stays
    assert torch.equal(diffusion.decode(found.states[-1], [""] * 40), found.sample)
    torch.testing.assert_close(found.reward, scorer(Scores()).score(found.sample, [""] * 40))


@pytest.mark.parametrize("gradient", [False, True])
def test_cost(gradient: bool) -> None:
    """T = 8, s = 2, M = 4, R = 3."""
    found = Refine(Dav(4, 0.5, 1.0, gradient, 0.0), 3, 0.25)(
        LinearGaussian(8), scorer(Bowl()), ["0.3"], KeyedNoise(0, 1, [0])
    )
    parents = (8, 2) if gradient else (1, 1)
    network = parents[0] + 7 * 4 + 3 * (parents[1] + 4)
    backward = 8 + 3 * 2 if gradient else 0
    assert found.cost == Cost(network=network, backward=backward, reward=(8 + 3 * 2) * 4 + backward)


@pytest.mark.parametrize("end", [1, 3])
def test_a_gaussian_state_is_renoised_by_the_forward_process(end: int) -> None:
    """From a clean state, and from one step on: both have the law of x_end given x_0."""
    toy = LinearGaussian(3)
    clean = torch.full((MANY, 2), 1.5)
    a = float(toy.schedule.alpha_bar[end]) / float(toy.schedule.alpha_bar_prev[1])
    direct = toy.schedule.renoise(clean, 0, end, BulkNoise(0, MANY).at(0))
    x = clean
    for t in range(end):
        x = toy.schedule.renoise(x, t, t + 1, BulkNoise(1, MANY).at(t))
    for found in (direct, x):
        assert float((found.mean(0) - a**0.5 * 1.5).abs().max()) < 4 * ((1 - a) / MANY) ** 0.5
        assert float((found.var(0) / (1 - a) - 1).abs().max()) < 4 * (2 / MANY) ** 0.5


def test_a_masked_state_is_renoised_by_the_forward_process() -> None:
    diffusion = model(steps=5)
    clean = torch.zeros(MANY, 4, dtype=torch.int64)
    x = clean
    for t in range(5):
        direct = diffusion.renoise(clean, 0, t + 1, [""] * MANY, BulkNoise(10 + t, MANY).at(0))
        x = diffusion.renoise(x, t, t + 1, [""] * MANY, BulkNoise(t, MANY).at(0))
        for found in (direct, x):
            share = float((found == MASK).float().mean())
            assert abs(share - (t + 1) / 5) < 4 * (0.25 / (4 * MANY)) ** 0.5 + 1e-4
    assert (x == MASK).all()


def test_other_copies_are_other_noise() -> None:
    noise = KeyedNoise(3, 1, [0, 1])
    draws = [noise.nth(copy).at(2).uniform((3,)) for copy in (0, 1, 2)]

    assert torch.equal(draws[0], noise.at(2).uniform((3,)))
    assert len({float(d[0, 0]) for d in draws}) == 3
    assert torch.equal(noise.copies(3).at(2).uniform((3,))[1:3], torch.stack([draws[1][0], draws[2][0]]))
    assert torch.equal(noise.nth(2).take([1]).at(2).uniform((3,)), draws[2][1:])


def test_the_configuration_reaches_it() -> None:
    config = SearchConfig(kind="refine", candidates=3, alpha=0.1, gamma=0.8, repeats=5, depth=0.3)
    assert strategy(config) == Refine(Dav(3, 0.1, 0.8, False, 0.0), 5, 0.3)
