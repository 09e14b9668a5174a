"""Where weights degenerate: a constant reward, infinite rewards, alpha to nothing and to infinity, one candidate."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.diffusion.sampling import ancestral
from dav_ray.errors import RewardError
from dav_ray.search.base import Search
from dav_ray.search.dav import Dav
from dav_ray.search.refine import Refine
from dav_ray.search.smc import Smc
from dav_ray.search.svdd import Svdd
from dav_ray.testing.base import scorer
from dav_ray.testing.enumerable import SEQUENCES, Scores, model
from dav_ray.testing.gaussian import Bowl, Linear, LinearGaussian
from dav_ray.types import Trajectories

NUM = 24


def searches(alpha: float = 0.7, candidates: int = 3, gradient: bool = False) -> dict[str, Search]:
    dav = Dav(candidates, alpha, 0.9, gradient, 0.0)
    return {
        "dav": dav,
        "smc": Smc(dav, below=0.8),
        "smc, adaptive": Smc(dav, 2, below=0.8, tempering="adaptive(0.6)"),
        "svdd": Svdd(candidates, alpha),
        "refine": Refine(dav, 2, 0.5),
    }


NAMES = list(searches())


def run(search: Search, diffusion: Any, reward: Any) -> Trajectories:
    names = ["0.3" if isinstance(diffusion, LinearGaussian) else ""] * NUM
    return search(diffusion, scorer(reward), names, KeyedNoise(1, 1, range(NUM)))


class Always:
    """One number for every sample."""

    differentiable = False

    def __init__(self, number: float) -> None:
        self.number = number

    def __call__(self, samples: Tensor, conditions: Any) -> Tensor:
        return torch.full((len(samples),), self.number, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("diffusion", [LinearGaussian(4), model()], ids=["gaussian", "masked"])
def test_where_nothing_is_feasible_every_weight_is_zero(diffusion: Any, name: str) -> None:
    """Choices are uniform then: a trajectory exists, its reward is minus infinity, its weight 0, Z_hat = 0."""
    found = run(searches()[name], diffusion, Always(-math.inf))
    assert found.reward.isneginf().all() and torch.isfinite(found.states.double()).all()
    assert found.log_weight is None or found.log_weight.isneginf().all()
    assert not found.ess.isnan().any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", [math.inf, math.nan])
def test_an_infinite_reward_is_an_error(number: float, name: str) -> None:
    with pytest.raises(RewardError, match=f"{number}"):
        run(searches()[name], LinearGaussian(4), Always(number))


@pytest.mark.parametrize("name", NAMES)
def test_a_single_feasible_sequence_is_found_or_weighs_nothing(name: str) -> None:
    reward = Scores()
    reward.table[:] = -math.inf
    reward.table[40] = 1.0
    found = run(searches(candidates=16)[name], model(), reward)
    hit = (found.sample == torch.tensor(SEQUENCES[40])).all(1)
    assert torch.equal(found.reward, torch.where(hit, 1.0, -math.inf).double()) and hit.any()
    assert found.log_weight is None or torch.equal(found.log_weight.isneginf(), ~hit)


@pytest.mark.parametrize("name", NAMES)
def test_alpha_to_infinity_is_the_model(name: str) -> None:
    """All weights alike: log W = r / alpha, which is next to nothing, and every candidate is as good as any."""
    found = run(searches(1e12)[name], LinearGaussian(4), Bowl())
    if found.log_weight is not None:
        assert found.log_weight.abs().max() < 1e-9
        most = 2 * NUM if name == "smc, adaptive" else NUM if name == "smc" else 3
        assert found.ess.tolist() == pytest.approx([most] * NUM)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("alpha", [1e-12, 5e-324])
def test_alpha_to_nothing_is_the_argmax(alpha: float, name: str) -> None:
    """The choice becomes the best candidate's, and no number breaks."""
    found = run(searches(alpha)[name], LinearGaussian(4), Bowl())
    assert torch.isfinite(found.reward).all() and torch.isfinite(found.states).all()
    assert found.log_weight is None or not found.log_weight.isnan().any()
    if name == "dav":
        best = run(Dav(3, alpha, 0.9, False, 0.0, choice="best"), LinearGaussian(4), Bowl())
        if alpha > 1e-300:
            assert torch.equal(found.states, best.states)
        assert best.log_weight is None


@pytest.mark.parametrize("name", ["dav", "svdd"])
def test_one_candidate_is_plain_sampling_with_the_weight_of_its_reward(name: str) -> None:
    toy = LinearGaussian(4)
    found = run(searches(candidates=1)[name], toy, Bowl())
    plain = ancestral(toy, ["0.3"] * NUM, KeyedNoise(1, 1, range(NUM)))
    torch.testing.assert_close(found.states, plain)
    assert found.log_weight is not None
    torch.testing.assert_close(found.log_weight, found.reward / 0.7, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gradient", [False, True])
def test_a_constant_reward_is_the_models_law(name: str, gradient: bool) -> None:
    """Nothing is preferred: log W = log Z = r / alpha, whatever the tempering."""
    found = run(searches(gradient=gradient)[name], LinearGaussian(4), Linear((0.0, 0.0), -3.0))
    if found.log_weight is not None:
        torch.testing.assert_close(found.log_weight, torch.full((NUM,), -3.0 / 0.7, dtype=torch.float64))
    assert found.reward.tolist() == [-3.0] * NUM


def test_the_averaged_ratio_is_the_sum_over_dimensions_divided() -> None:
    """`ratio: mean` switches the ratio off as dimensions grow; it changes the choice, and leaves no weight."""
    toy, rng = LinearGaussian(4, dim=5).shifted(0.8), KeyedNoise(1, 1, range(NUM))
    runs = [
        Dav(4, 0.7, 0.9, True, 0.3, ratio=ratio)(toy, scorer(Bowl()), ["0.3"] * NUM, rng) for ratio in ("sum", "mean")
    ]
    assert runs[1].log_weight is None and not torch.equal(runs[0].states, runs[1].states)
    x = toy.prior(["0.3"] * NUM, rng.at(4))
    kernel = toy.predict(x, 4, ["0.3"] * NUM).kernel.detach()
    tilted, draws = kernel.tilt(torch.ones_like(x)), kernel.sample(3, rng.at(3))
    sums, means = (
        Dav(4, 0.7, 0.9, True, 0.0, ratio=ratio)._log_ratio(toy, kernel, tilted, draws, x, 4, ["0.3"] * NUM)
        for ratio in ("sum", "mean")
    )
    torch.testing.assert_close(sums, kernel.log_prob(draws) - tilted.log_prob(draws))
    torch.testing.assert_close(means, sums / 5)
