"""The Gaussian kernel against torch.distributions, and DDIM's tables against diffusers' scheduler."""

from __future__ import annotations

import pickle

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from dav_ray.diffusion.base import rows_per_call
from dav_ray.diffusion.gaussian import GaussianKernel
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.diffusion.pipelines.ddim import DDIMSchedule

B, M, EVENT = 3, 5, (2, 4)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def kernel(std: str = "per state") -> GaussianKernel:
    """One standard deviation per state, as DDIM's, or one per dimension."""
    shape = (B, 1, 1) if std == "per state" else (B, *EVENT)
    return GaussianKernel(draw(B, *EVENT), draw(*shape, seed=1).abs() + 0.1)


def law(k: GaussianKernel) -> Independent:
    return Independent(Normal(k.mean.double(), k.std.double().expand_as(k.mean)), len(EVENT))


@pytest.fixture(params=["per state", "per dimension"])
def k(request: pytest.FixtureRequest) -> GaussianKernel:
    return kernel(request.param)


def test_log_prob_is_the_sum_over_the_event(k: GaussianKernel) -> None:
    x = draw(B, M, *EVENT, seed=2)
    expected = torch.stack([law(k).log_prob(x[:, m].double()) for m in range(M)], dim=1)

    assert k.log_prob(x).dtype == torch.float64
    torch.testing.assert_close(k.log_prob(x), expected, rtol=1e-12, atol=0)


def test_nll_is_minus_log_prob(k: GaussianKernel) -> None:
    x = draw(B, *EVENT, seed=2)

    assert k.nll(x).dtype == torch.float32
    torch.testing.assert_close(k.nll(x), -k.log_prob(x.unsqueeze(1))[:, 0].float(), rtol=1e-5, atol=1e-5)


def test_kl_is_that_of_torch(k: GaussianKernel) -> None:
    other = GaussianKernel(draw(B, *EVENT, seed=3), k.std)

    torch.testing.assert_close(k.kl(other), kl_divergence(law(k), law(other)).float(), rtol=1e-5, atol=1e-6)
    assert k.kl(k).tolist() == [0.0] * B


def test_samples_have_the_kernels_moments(k: GaussianKernel) -> None:
    num = 20_000
    x = k.sample(num, KeyedNoise(0, 1, range(B)).at(1))
    error = k.std.expand_as(k.mean) / num**0.5

    assert x.shape == (B, num, *EVENT)
    assert ((x.mean(1) - k.mean).abs() < 4 * error).all()
    # the standard error of a standard deviation is that of the mean over the square root of 2
    assert ((x.std(1) - k.std).abs() < 4 * error / 2**0.5).all()


def test_tilt_is_the_completed_square(k: GaussianKernel) -> None:
    g, x = draw(B, *EVENT, seed=4), draw(B, M, *EVENT, seed=5)
    excess = k.tilt(g).log_prob(x) - k.log_prob(x) - (g.unsqueeze(1) * x).flatten(2).sum(-1)
    # the constant is minus the log of the tilt's normaliser, E exp(<g, x>)
    variance = k.std.square().expand_as(g)
    constant = -(g * k.mean + 0.5 * variance * g.square()).flatten(1).sum(-1, keepdim=True).double()

    torch.testing.assert_close(excess, constant.expand(B, M), rtol=1e-5, atol=1e-4)


def test_tilt_by_nothing_is_the_identity(k: GaussianKernel) -> None:
    same = k.tilt(torch.zeros(B, *EVENT))

    assert torch.equal(same.mean, k.mean)
    assert torch.equal(same.std, k.std)


def test_a_blend_is_the_weighted_mean_without_the_candidates_common_error(k: GaussianKernel) -> None:
    x = k.sample(M, KeyedNoise(0, 1, range(B)).at(1))
    weights = torch.softmax(draw(B, M, seed=8).double(), 1)
    weighted = (weights[..., None, None] * x).sum(1).float()

    torch.testing.assert_close(k.blend(x, weights), weighted - (x.mean(1) - k.mean), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(k.blend(x, torch.full((B, M), 1 / M)), k.mean)


def test_without_variance_there_is_one_outcome_and_no_density() -> None:
    k = GaussianKernel(draw(B, *EVENT), torch.zeros(B, 1, 1))
    x = k.sample(M, KeyedNoise(0, 1, range(B)).at(1))

    assert k.deterministic
    assert torch.equal(x, k.mean.unsqueeze(1).expand(B, M, *EVENT))
    with pytest.raises(ValueError, match="no density"):
        k.log_prob(x)


def test_states_without_variance_add_nothing_and_spoil_no_gradient() -> None:
    mean = draw(2, *EVENT).requires_grad_()
    k = GaussianKernel(mean, torch.tensor([0.0, 0.5]).reshape(2, 1, 1))
    x, other = draw(2, *EVENT, seed=6), GaussianKernel(draw(2, *EVENT, seed=7), k.std)
    nll, kl = k.nll(x), k.kl(other)
    (grad,) = torch.autograd.grad((nll + kl).sum(), mean)

    assert not k.deterministic
    assert nll[0] == 0 and kl[0] == 0
    assert nll[1] > 0 and kl[1] > 0
    assert torch.equal(grad[0], torch.zeros(EVENT))
    expected = (mean - x + mean - other.mean)[1] / 0.25
    torch.testing.assert_close(grad[1], expected.detach())


def test_take_and_detach(k: GaussianKernel) -> None:
    x, rows = draw(B, M, *EVENT, seed=2), torch.tensor([2, 0, 2])
    attached = GaussianKernel(k.mean.clone().requires_grad_(), k.std)

    assert torch.equal(k.take(rows).log_prob(x[rows]), k.log_prob(x)[rows])
    assert attached.mean.requires_grad and not attached.detach().mean.requires_grad
    assert torch.equal(attached.detach().mean, k.mean)


def test_take_with_one_variance_for_all_states() -> None:
    k = GaussianKernel(draw(B, *EVENT), torch.full((1, 1, 1), 0.3))
    rows = torch.tensor([1, 1])

    assert torch.equal(k.take(rows).mean, k.mean[rows])
    assert k.take(rows).std.shape == (1, 1, 1)


def test_pickle(k: GaussianKernel) -> None:
    again, x = pickle.loads(pickle.dumps(k)), draw(B, M, *EVENT, seed=2)

    assert torch.equal(again.log_prob(x), k.log_prob(x))


@pytest.mark.parametrize("steps", [7, 50, 61])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction, zero_snr", [("epsilon", False), ("v_prediction", False), ("v_prediction", True)])
def test_every_step_is_the_schedulers(steps: int, spacing: str, prediction: str, zero_snr: bool) -> None:
    """61 trailing steps are a case where rounding gives diffusers' table a 62nd entry, -1, which is no step."""
    scheduler = DDIMScheduler(
        timestep_spacing=spacing, prediction_type=prediction, clip_sample=False, rescale_betas_zero_snr=zero_snr
    )
    schedule = DDIMSchedule(scheduler, steps, eta=0.7)
    taus = scheduler.timesteps.tolist()
    for t in range(1, steps + 1):
        x, out, z = draw(1, *EVENT), draw(1, *EVENT, seed=1), draw(1, *EVENT, seed=2)
        expected = scheduler.step(out, taus[steps - t], x, eta=0.7, variance_noise=z)
        k, x0_hat = schedule.kernel(x, out, torch.tensor([t]))

        torch.testing.assert_close(k.mean + k.std * z, expected.prev_sample, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(x0_hat, expected.pred_original_sample, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("set_alpha_to_one, deterministic", [(True, True), (False, False)])
def test_the_last_step_has_variance_unless_it_reaches_alpha_one(set_alpha_to_one: bool, deterministic: bool) -> None:
    scheduler = DDIMScheduler(set_alpha_to_one=set_alpha_to_one, steps_offset=1)
    std = DDIMSchedule(scheduler, 10, eta=1.0).std

    assert (std[1] == 0) == deterministic
    assert (std[2:] > 0).all()


@pytest.mark.parametrize("total, limit, sizes", [(5, 8, [5]), (5, 2, [2, 2, 1]), (9, 4, [3, 3, 3]), (1, 1, [1])])
def test_rows_per_call(total: int, limit: int, sizes: list[int]) -> None:
    calls = rows_per_call(total, limit)

    assert [i for rows in calls for i in range(total)[rows]] == list(range(total))
    assert sorted((rows.stop - rows.start for rows in calls), reverse=True) == sizes
