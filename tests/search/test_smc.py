"""SMC: against DAV where they agree, against a loop written from the design, and what is gathered on resampling."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from dav_ray.config.build import strategy
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.search.dav import Dav
from dav_ray.search.options import Search as SearchConfig
from dav_ray.search.plain import NoSearch
from dav_ray.search.smc import Smc, trace
from dav_ray.search.svdd import Svdd
from dav_ray.search.weighting.resampling import systematic
from dav_ray.testing.base import BulkNoise, scorer
from dav_ray.testing.enumerable import Scores, frequencies, law, model
from dav_ray.testing.gaussian import Bowl, HalfSpace, Linear, LinearGaussian
from dav_ray.types import Cost, Trajectories

ALPHA, GAMMA = 0.7, 0.9
DAV = Dav(3, ALPHA, GAMMA, False, 0.0)
CONDITIONS = ["0.3", "-0.5", "0.3", "1.0", "0.3", "-0.5"]


def run(search: Any, conditions: list[str] = CONDITIONS, toy: Any = None, reward: Any = None, seed: int = 5) -> Any:
    noise = KeyedNoise(seed, 2, range(len(conditions)))
    return search(toy or LinearGaussian(4).shifted(0.6), scorer(reward or Bowl()), conditions, noise)


@pytest.mark.parametrize("gradient, beta", [(False, 0.0), (True, 0.3)])
def test_a_population_of_one_is_dav(gradient: bool, beta: float) -> None:
    dav = Dav(3, ALPHA, GAMMA, gradient, beta)
    names = ["0.3", "0.3 ", "-0.5", "1"]
    alone, plain = run(Smc(dav), names), run(dav, names)
    torch.testing.assert_close(alone.states, plain.states)
    torch.testing.assert_close(alone.log_weight, plain.log_weight)
    assert alone.cost == plain.cost
    assert torch.equal(alone.step_ess, torch.ones(4, 4, dtype=torch.float64))


def test_without_resampling_on_the_way_it_draws_from_the_trajectory_weights() -> None:
    """Weights are carried: what is drawn at the end is DAV's own set, by DAV's own weights."""
    found, plain = run(Smc(DAV, below=0.0)), run(DAV)
    for name in set(CONDITIONS):
        rows = [i for i, c in enumerate(CONDITIONS) if c == name]
        weights = plain.log_weight[rows].exp()
        assert found.log_weight[rows].exp().tolist() == pytest.approx([float(weights.mean())] * len(rows))
        u = KeyedNoise(5, 2, range(6)).at(0)
        u.normal((3, 2)), u.uniform(())
        picked = systematic(weights / weights.sum(), len(rows), u.uniform(())[rows])
        assert torch.equal(found.states[:, rows], plain.states[:, [rows[i] for i in picked]])
        assert torch.equal(found.reward[rows], plain.reward[[rows[i] for i in picked]])


def by_hand(toy: LinearGaussian, conditions: list[str], noise: KeyedNoise, below: float) -> tuple[Tensor, Tensor]:
    """One population of particles with one candidate each, written from the design: states x_0 and log Z_hat."""
    reward, num = Bowl(), len(conditions)
    x = toy.prior(conditions, noise.at(toy.steps))
    toy.trainable().requires_grad_(False)
    log_weight, kept = torch.zeros(num, dtype=torch.float64), torch.zeros(num, dtype=torch.float64)
    for t in range(toy.steps, 0, -1):
        rng = noise.at(t - 1)
        x = toy.predict(x, t, conditions).kernel.sample(1, rng)[:, 0]
        rng.uniform(())
        guess = toy.predict(x, t - 1, conditions).x0_hat if t > 1 else x
        v = GAMMA ** (t - 1) * reward(guess, conditions).double() / ALPHA
        log_weight = log_weight + v - kept
        w = (log_weight - log_weight.max()).exp()
        u, rows = rng.uniform(()), torch.arange(num)
        if t == 1 or float(w.sum() ** 2 / (w * w).sum()) < below * num:
            rows = systematic(w / w.sum(), num, u)
            log_weight = torch.full((num,), math.log(float(w.mean())) + float(log_weight.max()), dtype=torch.float64)
        x, kept = x[rows], v[rows]
    return x, log_weight


@pytest.mark.parametrize("below", [0.0, 0.6, 1.0])
def test_every_number_is_that_of_the_loop(below: float) -> None:
    toy, conditions = LinearGaussian(4).shifted(0.6), ["0.3"] * 12
    noise = KeyedNoise(5, 2, range(12))
    found = Smc(Dav(1, ALPHA, GAMMA, False, 0.0), below=below)(toy, scorer(Bowl()), conditions, noise)
    x, log_weight = by_hand(toy, conditions, noise, below)
    torch.testing.assert_close(found.states[-1], x)
    assert found.log_weight is not None and found.step_ess is not None
    torch.testing.assert_close(found.log_weight, log_weight)
    assert found.step_ess.min() < 12 * 0.6  # so that 0.6 differs from 0


@pytest.mark.parametrize("particles", [1, 3])
def test_all_that_belongs_to_a_particle_moves_with_it(particles: int) -> None:
    """Reward, sample, path: of one particle. Its own prompt's population is all that it is drawn from."""
    found = run(Smc(DAV, particles, below=1.0))
    assert found.states.shape == (5, 6, 2) and found.reward.shape == (6,)
    torch.testing.assert_close(found.reward, Bowl()(found.sample, CONDITIONS).double())
    assert torch.equal(found.states[-1], found.sample)
    for name in set(CONDITIONS):
        rows = [i for i, c in enumerate(CONDITIONS) if c == name]
        assert len(set(found.log_weight[rows].tolist())) == 1
    assert len(set(found.log_weight.tolist())) == 3
    # a path is one of the kernel's: its steps are as far from their means as noise is
    toy = LinearGaussian(4).shifted(0.6)
    for t in (4, 3, 2, 1):
        kernel = toy.predict(found.states[4 - t], t, CONDITIONS).kernel
        z = (found.states[5 - t] - kernel.mean) / kernel.std
        assert z.abs().max() < 4.5


def test_a_path_is_traced_through_its_ancestors() -> None:
    states = [torch.arange(3) + 10 * t for t in range(4)]
    lineage = [torch.tensor(a) for a in ([0, 0, 2], [2, 1, 1], [1, 2])]
    # x_0 = 31 and 32 come from places 1 and 2 after the second resampling, both 21; that from place 1 after the first
    assert trace(states, lineage).tolist() == [[0, 0], [10, 10], [21, 21], [31, 32]]


@pytest.mark.parametrize("tempering", ["discount", "linear", "adaptive(0.8)"])
@pytest.mark.parametrize("scheme", ["systematic", "stratified", "ssp"])
def test_the_law_is_the_tilted_one(scheme: str, tempering: str) -> None:
    """One large population: its draws follow anchor exp(r / alpha), from which plain samples are far off."""
    diffusion, reward, many = model(moved=0.3), Scores(), 6000
    tilted = law(diffusion) * (reward.table.double() / 1.5).exp()
    tilted /= tilted.sum()
    search = Smc(Dav(2, 1.5, GAMMA, False, 0.0), resampling=scheme, below=0.7, tempering=tempering)
    found = search(diffusion, scorer(reward), [""] * many, BulkNoise(3, many))  # type: ignore[arg-type]
    distance = 0.5 * float((frequencies(found.sample) - tilted).abs().sum())
    floor = 0.5 * float((2 * tilted * (1 - tilted) / (torch.pi * many)).sqrt().sum())
    assert distance < 2.5 * floor  # particles share ancestors: fewer than `many` are independent
    assert 0.5 * float((law(diffusion) - tilted).abs().sum()) > 5 * floor


def test_log_z_of_a_hard_constraint() -> None:
    """Minus infinity is a weight of zero, in the population as anywhere; all of it at minus infinity is Z_hat = 0."""
    toy, names = LinearGaussian(3), [f"0.3{' ' * (i % 50)}" for i in range(400)]
    found = Smc(Dav(1, ALPHA, GAMMA, False, 0.0), below=1.0)(
        toy, scorer(HalfSpace(-0.5)), names, KeyedNoise(1, 1, range(400))
    )
    assert found.log_weight is not None and not found.log_weight.isnan().any()
    assert torch.equal(found.reward.isneginf(), found.log_weight.isneginf())
    hopeless = Smc(DAV, below=1.0)(toy, scorer(HalfSpace(-1e9)), ["0.3"] * 8, KeyedNoise(1, 1, range(8)))
    assert hopeless.log_weight is not None and hopeless.log_weight.isneginf().all()
    assert hopeless.reward.isneginf().all() and torch.isfinite(hopeless.states).all()


def test_adaptive_tempering_ends_at_the_whole_reward() -> None:
    """However little of it was let in before: with one candidate and no resampling on the way log W = r / alpha."""
    toy, names = LinearGaussian(4), ["0.3"] * 40
    search = Smc(Dav(1, 0.05, GAMMA, False, 0.0), below=0.0, tempering="adaptive(0.95)")
    found, plain = run(search, names, toy), run(NoSearch(0.05, 0.0), names, toy)
    expected = torch.logsumexp(plain.reward / 0.05, 0) - math.log(40)
    torch.testing.assert_close(found.log_weight, expected.expand(40))


def test_a_constant_reward_moves_log_z_and_nothing_else() -> None:
    for tempering in ("discount", "linear", "adaptive(0.5)"):
        search = Smc(DAV, below=0.9, tempering=tempering)
        found = run(search, reward=Linear((0.0, 0.0), 2.0))
        plain = run(search, reward=Linear((0.0, 0.0), 0.0))
        torch.testing.assert_close(found.log_weight, torch.full((6,), 2.0 / ALPHA, dtype=torch.float64))
        assert torch.equal(found.states, plain.states)


def test_the_same_noise_gives_the_same_bits_and_the_configuration_reaches_it() -> None:
    config = SearchConfig(
        kind="smc", candidates=2, alpha=ALPHA, gradient=True, anchor="geometric(0.3)", particles=2, resampling="ssp",
        resample_below=0.8, tempering="adaptive(0.6)",
    )  # fmt: skip
    search = strategy(config)
    assert search == Smc(Dav(2, ALPHA, 0.9, True, 0.3), 2, "ssp", 0.8, "adaptive(0.6)")
    runs: list[Trajectories] = [run(s) for s in (search, pickle.loads(pickle.dumps(search)))]
    assert torch.equal(runs[0].states, runs[1].states)
    assert not torch.equal(runs[0].states, run(search, seed=6).states)


@pytest.mark.parametrize("gradient, beta", [(False, 0.0), (True, 0.3)])
def test_cost(gradient: bool, beta: float) -> None:
    """P times that of dav: T = 4, M = 3, P = 2."""
    found = run(Smc(Dav(3, ALPHA, GAMMA, gradient, beta), 2), ["0.3"] * 5)
    network, backward = (4 + 9, 4) if gradient else (1 + 9, 0)
    reference = 4 if beta else 0
    each = Cost(network=network, backward=backward, reference=reference, reward=12 + backward)
    assert found.cost == sum([each] * 10, Cost())


def test_svdd_is_dav_without_tilt_ratio_and_discount() -> None:
    found, plain = run(Svdd(3, ALPHA)), run(Dav(3, ALPHA, 1.0, False, 0.0))
    assert torch.equal(found.states, plain.states) and torch.equal(found.log_weight, plain.log_weight)
    best = run(Svdd(16, ALPHA, "best"))
    assert best.log_weight is None and best.reward.mean() > found.reward.mean()
    assert strategy(SearchConfig(kind="svdd", candidates=3, alpha=ALPHA, choice="best")) == Svdd(3, ALPHA, "best")
