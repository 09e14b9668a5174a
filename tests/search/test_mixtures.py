"""DAS' mixtures: the exact score, the sampler's law, searches against the exact posterior, and what measures them."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from dav_ray.diffusion.sampling import ancestral
from dav_ray.mstep.fit import Fitter
from dav_ray.mstep.objective import Rows
from dav_ray.mstep.options import MStep
from dav_ray.search.dav import Dav
from dav_ray.search.smc import Smc
from dav_ray.search.weighting.weights import normalise
from dav_ray.testing.base import BulkNoise, scorer
from dav_ray.testing.distances import emd, mmd, mode_shares, modes_kept, moments, sliced_emd, total_variation
from dav_ray.testing.gaussian import populations
from dav_ray.testing.mixture import (
    Line,
    Mixture,
    MixtureDiffusion,
    Problem,
    circle,
    nine_modes,
    sampler_line,
    swiss_roll,
)

PROBLEMS = [nine_modes(), circle(), swiss_roll(200)]
GAMMA = 0.95


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- the laws ----


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_densities_are_those_of_torch_and_tilts_multiply_them(problem: Problem) -> None:
    """log p' = log p + r / alpha - log Z, wherever one looks."""
    data, alpha = problem.data, 0.7
    tilted, log_z = data.tilted(problem.reward, alpha)
    x = 3 * torch.randn(50, data.means.shape[1], generator=draws(), dtype=torch.float64)
    normals = MultivariateNormal(data.means, data.covariance)
    expected = MixtureSameFamily(Categorical(logits=data.log_share), normals).log_prob(x)
    torch.testing.assert_close(data.log_prob(x), expected)
    torch.testing.assert_close(tilted.log_prob(x), expected + problem.reward(x) / alpha - log_z)
    assert float(tilted.log_share.exp().sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_mean_rewards_are_those_of_draws_and_of_the_paper(problem: Problem) -> None:
    for law, name in ((problem.posterior, "posterior"), (problem.data, "pretrained")):
        reward = problem.reward(law.sample(100_000, draws()))
        error = float(reward.std()) / len(reward) ** 0.5
        assert abs(float(reward.mean()) - law.mean_reward(problem.reward)) < 4 * error
        if name == "posterior" and problem.centres is not None:  # the roll's scale is known from -3.26 only
            assert law.mean_reward(problem.reward) == pytest.approx(problem.published[name], abs=0.006)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_the_prediction_is_the_score_of_the_noised_law(problem: Problem) -> None:
    """x0_hat = (x_t + (1 - a) grad log p_t(x_t)) / sqrt(a), and eps goes with it into the kernel's mean."""
    diffusion = MixtureDiffusion(problem.data)
    for t in (1, 2, 20, 60, 100):
        a, b = (float(bar[t]) for bar in (diffusion.schedule.alpha_bar, diffusion.schedule.alpha_bar_prev))
        noised = problem.data.noised(a)
        x = noised.sample(40, draws(t)).double().requires_grad_()
        (score,) = torch.autograd.grad(noised.log_prob(x).sum(), x)
        found = diffusion.predict(x.detach().float(), t, [""] * 40)
        x0_hat = (x + (1 - a) * score).detach() / a**0.5
        torch.testing.assert_close(found.x0_hat.double(), x0_hat, rtol=2e-3, atol=2e-3)
        sigma = float(found.kernel.std.max())
        assert sigma**2 == pytest.approx((1 - b) / (1 - a) * (1 - a / b), rel=1e-4)
        eps = -math.sqrt(1 - a) * score.detach()
        mean = math.sqrt(b) * x0_hat + math.sqrt(1 - b - sigma**2) * eps
        torch.testing.assert_close(found.kernel.mean.double(), mean, rtol=2e-3, atol=2e-3)


@cache
def line() -> Line:
    """Nine modes are a product of two such lines."""
    return sampler_line(MixtureDiffusion(Mixture.even(torch.tensor([[-4.0], [0.0], [4.0]]), 0.3)), spacing=0.02)


def sampler_target() -> tuple[float, float]:
    """Posterior mean reward and log Z of nine modes under the sampler's own law."""
    (x, log_x), (y, log_y) = line().tilted(0.01, 1.0), line().tilted(1.0, 1.0)
    return -0.01 * x.mean_square() - y.mean_square(), log_x + log_y


def test_the_samplers_law_is_close_to_the_datas() -> None:
    """Within three hundredths in all that is asserted below; the search is held to the sampler's own."""
    problem = nine_modes()
    reward, log_z = sampler_target()
    assert abs(line().mean_square() / (32 / 3 + 0.3) - 1) < 0.03
    assert abs(reward - problem.posterior.mean_reward(problem.reward)) < 0.02
    assert 0.01 < abs(log_z - problem.data.tilted(problem.reward, 1.0)[1]) < 0.06


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_plain_samples_have_the_data_law(problem: Problem) -> None:
    many, diffusion = 4000, MixtureDiffusion(problem.data)
    x = ancestral(diffusion, [""] * many, BulkNoise(1, many))[-1]
    data = problem.data.sample(100_000, draws())
    assert float(((x.mean(0) - data.mean(0)) / (x.var(0) / many).sqrt()).abs().max()) < 4
    assert float((x.var(0) / data.var(0) - 1).abs().max()) < 0.03 + 4 * (2 / many) ** 0.5  # 0.03: the test above
    if problem.centres is not None:
        shares, num = mode_shares(x, problem.centres), len(problem.centres)
        assert float((shares - 1 / num).abs().max()) < 4 * ((1 - 1 / num) / num / many) ** 0.5
        assert modes_kept(shares, torch.full((num,), 1 / num)) == (num, num)


def test_the_policy_starts_as_nothing_and_the_reference_stays() -> None:
    diffusion, x = MixtureDiffusion(circle().data), 3 * torch.randn(8, 2, generator=draws())
    plain = diffusion.predict(x, 40, [""] * 8, reference=True).kernel.mean
    assert torch.equal(diffusion.predict(x, 40, [""] * 8).kernel.mean, plain)
    with torch.no_grad():
        for parameter in diffusion.trainable().parameters():
            parameter += 0.1
    assert not torch.allclose(diffusion.predict(x, 40, [""] * 8).kernel.mean, plain, atol=0.01)
    assert torch.equal(diffusion.predict(x, 40, [""] * 8, reference=True).kernel.mean, plain)


# ---- searches ----

SIZE = 200  # of a population


def check(sample: Tensor, log_weight: Tensor, of: Tensor | None) -> None:
    """Mean reward and log Z, to the sampler's law."""
    reward, log_z = sampler_target()
    found = moments(nine_modes().reward(sample).unsqueeze(1), log_weight, of)
    assert abs(float(found.mean) - reward) / float(found.mean_error) < 4
    assert abs(found.log_z - log_z) / found.log_z_error < 4
    assert float(found.mean_error) < 0.02 and found.log_z_error < 0.06


@pytest.mark.thorough
@pytest.mark.parametrize("gradient", [False, True])
def test_weighted_dav_reaches_the_posterior_and_unweighted_dav_does_not(gradient: bool) -> None:
    problem, many = nine_modes(), 2000
    search = Dav(4, 1.0, GAMMA, gradient, 0.0)
    noise: Any = BulkNoise(2, many)
    found = search(MixtureDiffusion(problem.data), scorer(problem.reward), [""] * many, noise)
    assert found.log_weight is not None
    check(found.sample, found.log_weight, None)
    accepted = moments(found.reward.unsqueeze(1))
    assert (float(accepted.mean) - sampler_target()[0]) / float(accepted.mean_error) < -10


@pytest.mark.parametrize("gradient", [pytest.param(False, marks=pytest.mark.thorough), True])
def test_smc_reaches_the_posterior_in_all_modes(gradient: bool) -> None:
    problem, many = nine_modes(), 4000
    names, of = populations("", many // SIZE, SIZE), torch.arange(many) // SIZE
    noise: Any = BulkNoise(3, many)
    search = Smc(Dav(1, 1.0, GAMMA, gradient, 0.0))
    found = search(MixtureDiffusion(problem.data), scorer(problem.reward), names, noise)
    assert found.log_weight is not None and problem.centres is not None
    check(found.sample, found.log_weight, of)
    true = mode_shares(problem.posterior.sample(50_000, draws()), problem.centres)
    shares = mode_shares(found.sample, problem.centres)
    assert modes_kept(shares, true) == (3, 3)
    assert total_variation(shares, true) < 0.05
    assert total_variation(torch.full((9,), 1 / 9), true) > 0.5


def test_one_round_of_em_brings_plain_samples_to_the_posterior() -> None:
    """With trajectory weights: the tilted law is what the M-step is shown. Without them it comes half as near."""
    problem, num, names = nine_modes(), 320, ("",) * 320
    diffusion = MixtureDiffusion(problem.data)
    exact = problem.posterior.sample(400, draws())

    def distance() -> float:
        return emd(ancestral(diffusion, [""] * 400, BulkNoise(50, 400))[-1], exact)

    before, noise = distance(), BulkNoise(1, num)
    found = Dav(2, 1.0, GAMMA, True, 0.0)(diffusion, scorer(problem.reward), names, noise)  # type: ignore[arg-type]
    assert found.log_weight is not None
    weights = torch.tensor(normalise(found.log_weight.tolist(), names), dtype=torch.float64)
    fitter = Fitter(diffusion, MStep(kl=0.0, learning_rate=1e-2, epochs=4, batch_size=1024, micro_batch=1024), 0)
    fitter.fit(1, [Rows(found.states.transpose(0, 1), None, names, weights, torch.ones(num) > 0)])
    assert before > 2.0
    assert distance() < 0.33 * before


# ---- distances ----


def test_transport_of_a_shift_is_its_length() -> None:
    x, shift = torch.randn(200, 2, generator=draws()), torch.tensor([0.3, -0.4])
    assert emd(x, x + shift) == pytest.approx(0.5, abs=1e-6)
    # the mean of |<u, s>| over unit vectors in the plane is 2 |s| / pi
    assert sliced_emd(x, x + shift, draws(), directions=4000) == pytest.approx(1 / math.pi, rel=0.02)
    assert emd(x, x[torch.randperm(200, generator=draws())]) == pytest.approx(0.0, abs=1e-9)


def test_transport_on_a_line_matches_the_sorted() -> None:
    a, b = torch.randn(100, 1, generator=draws()), torch.rand(100, 1, generator=draws(1))
    expected = float((a.double().sort(0).values - b.double().sort(0).values).abs().mean())
    assert emd(a, b) == pytest.approx(expected)
    assert sliced_emd(a, b, draws()) == pytest.approx(expected)


def test_mmd_is_unbiased_and_has_the_closed_form_of_two_gaussians() -> None:
    """E k = (h^2 / (h^2 + 2))^(d/2) exp(-|s|^2 / (2 (h^2 + 2))) for N(0, I) and N(s, I)."""
    num, pairs = 60, 300
    equal = torch.tensor([mmd(*torch.randn(2, num, 2, generator=draws(k)).unbind()) for k in range(pairs)])
    error = float(equal.std()) / pairs**0.5
    assert abs(float(equal.mean())) < 4 * error
    assert error < 0.1 / num  # leaving the diagonal in would add about 2 (1 - E k) / num
    shift = torch.tensor([1.0, 0.5])
    a, b = torch.randn(2, 2000, 2, generator=draws()).unbind()
    b = b + shift
    square = float(torch.pdist(torch.cat([a, b]).double()).median()) ** 2
    expected = 2 * square / (square + 2) * (1 - math.exp(-1.25 / (2 * (square + 2))))
    assert mmd(a, b) == pytest.approx(expected, rel=0.1)


def test_shares_and_modes_that_are_kept() -> None:
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    x = torch.tensor([[0.1, 0.2], [3.0, 0.5], [4.5, 1.0], [0.3, -1.0]])
    shares = mode_shares(x, centres)
    assert shares.tolist() == [0.5, 0.5, 0.0]
    true = torch.tensor([0.2, 0.795, 0.005], dtype=torch.float64)
    assert modes_kept(shares, true) == (2, 2)  # the third is too small to count
    assert modes_kept(torch.tensor([0.7, 0.3, 0.0]), true) == (1, 2)
    assert total_variation(shares, true) == pytest.approx(0.3)


def test_moments_know_weights_and_populations() -> None:
    x = torch.randn(5000, 2, generator=draws()) * torch.tensor([1.0, 2.0])
    plain = moments(x)
    torch.testing.assert_close(plain.covariance, torch.cov(x.double().T, correction=0))
    torch.testing.assert_close(plain.mean_error, (plain.covariance.diagonal() / 5000).sqrt())
    assert plain.effective == pytest.approx(1.0) and plain.log_z == pytest.approx(0.0) and plain.log_z_error < 1e-12
    # twice the same samples: nothing more is known, if one says so
    twice = moments(x.repeat_interleave(2, 0), None, torch.arange(5000).repeat_interleave(2))
    torch.testing.assert_close(twice.mean_error, plain.mean_error)
    assert twice.effective == pytest.approx(0.5)
    # weights exp(x_1): the mean moves by one variance, and log E[exp(x_1)] = 1/2 with variance (e - 1) / N
    tilted = moments(x, x[:, 0])
    assert ((tilted.mean - torch.tensor([1.0, 0.0])).abs() < 4 * tilted.mean_error).all()
    assert abs(tilted.log_z - 0.5) < 4 * tilted.log_z_error
    assert tilted.log_z_error == pytest.approx(((math.e - 1) / 5000) ** 0.5, rel=0.15)
    assert tilted.effective == pytest.approx(1 / math.e, rel=0.35)
