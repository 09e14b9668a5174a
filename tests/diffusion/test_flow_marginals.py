"""What each noise rule keeps of a flow's marginals, x_s = (1 - s) x_0 + s eps from s = 1, with an exact denoiser.

Moments are carried from step to step in closed form. Some rules are exact, some err by the step, and some err whatever
the step: `ddim` draws less in smaller steps, `cps` and `renoise` draw the same share.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dav_ray.diffusion.noise_rules import NOISE_RULES
from dav_ray.testing.flow import LinearFlow, MixtureFlow, even
from dav_ray.testing.mixture import nine_modes

CONDITION = "0.3"
KEEPING = [("ddim", 0.0), ("ddim", 0.6), ("ddim", 1.0), ("cps", 0.5), ("cps", 1.0), ("renoise", 1.0)]


def off(model: LinearFlow) -> list[float]:
    """Error of the variance of x_t, t = 0..T, where that of x_T is right."""
    laws = model.laws("0", variance=model.marginal("0", model.steps)[1])
    return [variance - model.marginal("0", t)[1] for t, (_, variance) in enumerate(laws)]


def end(steps: int, rule: str, eta: Any, first: float = 1.0, **options: Any) -> float:
    """Error of the variance of x_0."""
    return off(LinearFlow(even(steps, first), rule, eta, **options))[0]


@pytest.mark.parametrize("rule", NOISE_RULES)
def test_the_kernels_have_the_moments_of_the_recursion(rule: str) -> None:
    """Each step is linear: two states tell its slope. The policy's shifts move the mean alone."""
    model = LinearFlow(even(6), rule, 0.7).shifted(0.4)
    laws = model.laws(CONDITION)
    mean, variance = torch.zeros(2, dtype=torch.float64), 1.0
    for t in range(model.steps, 0, -1):
        x = torch.stack([torch.zeros(2), torch.ones(2)])
        with torch.no_grad():
            kernel = model.predict(x, t, [CONDITION] * 2).kernel
        slope = (kernel.mean[1] - kernel.mean[0]).double()
        mean = kernel.mean[0].double() + slope * mean
        variance = float(slope[0]) ** 2 * variance + float(kernel.std[0]) ** 2
        torch.testing.assert_close(mean, laws[t - 1][0], rtol=1e-5, atol=1e-5)
        assert variance == pytest.approx(laws[t - 1][1], rel=1e-5, abs=1e-5)
        assert (kernel.std == 0).all() == (t == 1 and rule in ("ddim", "cps", "renoise"))


@pytest.mark.parametrize("rule", NOISE_RULES)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_every_rule_keeps_the_mean(rule: str, steps: int) -> None:
    model = LinearFlow(even(steps), rule, 0.7)
    for t, (mean, _) in enumerate(model.laws(CONDITION)):
        assert mean.tolist() == pytest.approx([model.marginal(CONDITION, t)[0]] * 2, abs=1e-6)


@pytest.mark.parametrize("rule, eta", KEEPING)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_where_the_guess_is_the_clean_state_three_rules_are_exact(rule: str, eta: float, steps: int) -> None:
    """Data of one point, whose posterior mean is that point: at any number of steps."""
    assert off(LinearFlow(even(steps), rule, eta, std=0.0)) == pytest.approx([0.0] * (steps + 1), abs=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_renoise_is_exact_with_a_consistency_model(steps: int) -> None:
    """x_0 = f(x_t) has the data's law, and is noised again."""
    assert off(LinearFlow(even(steps), "renoise", 1.0, consistent=True)) == pytest.approx([0.0] * (steps + 1), abs=1e-6)
    assert abs(end(7, "ddim", 1.0, consistent=True)) > 1e-3  # other rules' eps_hat would have to be its partner


@pytest.mark.parametrize(
    "rule, eta, first",
    [
        *(
            (rule, eta, 1.0)
            for rule, eta in (("ddim", 0.0), ("ddim", 0.6), ("ddim", 1.0), ("dance", 0.3), ("dance", 1))
        ),
        *(("flow_sde", eta, 0.9) for eta in (0.3, 0.7, 1.0)),
    ],
)
def test_with_the_posterior_mean_the_error_halves_with_the_step(rule: str, eta: float, first: float) -> None:
    """Of rules whose noise is less in smaller steps: to first order. flow_sde: from below s = 1."""
    errors = [end(steps, rule, eta, first) for steps in (10, 160, 320, 640)]
    print(f"{rule}({eta}): {errors}")
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.05)
    assert errors[2] / errors[3] == pytest.approx(2, rel=0.03)
    assert abs(errors[0]) < 0.25 and abs(errors[3]) < 0.006  # of a variance of 0.64


def test_flow_sde_gives_its_first_step_an_error_that_no_step_is_too_small_for() -> None:
    """From s = 1, g^2 dt is eta^2 whatever dt: the level's variance becomes 1 + eta^4 / 4. Later steps forget it."""
    for eta in (0.3, 0.7):
        errors = off(LinearFlow(even(2000), "flow_sde", eta))
        assert errors[-2] == pytest.approx(eta**4 / 4, rel=0.05)
        assert abs(errors[0]) < 0.01


def test_dance_needs_data_that_are_wider_than_its_noise() -> None:
    """eta^2 dt / (2 sigma) outgrows sigma' where sigma goes to 0: with data of one point small steps make it worse."""
    assert end(80, "dance", 0.7, std=0.0) > 100 > 1 > end(10, "dance", 0.7, std=0.0) > 0.1


@pytest.mark.parametrize("rule, eta", [("cps", 0.5), ("renoise", 1.0)])
def test_a_share_that_is_drawn_at_every_step_leaves_an_error_whatever_the_step(rule: str, eta: float) -> None:
    """With the posterior mean: samples are too narrow. More steps do not help; a share that falls with the root of the
    step, or noise at few steps, does."""
    errors = [end(steps, rule, eta) for steps in (160, 320, 640)]
    assert -0.4 < errors[0] < errors[2] < 0.9 * errors[0] < -0.09
    assert abs(errors[2] - errors[1]) < 0.1 * abs(errors[2])
    if rule == "cps":
        falling = [end(steps, rule, 1.5 / math.sqrt(steps)) for steps in (160, 320, 640)]
        assert falling[0] / falling[1] == pytest.approx(2, rel=0.1)
    few = [end(steps, rule, [eta, eta]) for steps in (160, 320)]
    assert few[0] / few[1] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("rule", ["cps", "ddim"])
def test_a_mixtures_guess_is_the_score_of_the_noised_law(rule: str) -> None:
    """alpha x0_hat = x_t + sigma^2 grad log p_t(x_t), and at s = 1 x0_hat is the mean of the data."""
    data = nine_modes().data
    model = MixtureFlow(data, even(20), rule)
    eye = torch.eye(2, dtype=torch.float64)
    for t in (1, 5, 12, 19):
        level = model.schedule.levels[t]
        law = type(data)(
            data.log_share, level.alpha * data.means, level.alpha**2 * data.covariance + level.sigma**2 * eye
        )
        x = law.sample(40, torch.Generator().manual_seed(t)).double().requires_grad_()
        (score,) = torch.autograd.grad(law.log_prob(x).sum(), x)
        with torch.no_grad():
            found = model.predict(x.float(), t, [""] * 40)
        expected = (x + level.sigma**2 * score).detach() / level.alpha
        torch.testing.assert_close(found.x0_hat.double(), expected, rtol=2e-3, atol=2e-3)
    with torch.no_grad():
        first = model.predict(torch.randn(5, 2), 20, [""] * 5)
    torch.testing.assert_close(first.x0_hat, torch.zeros(5, 2), atol=1e-5, rtol=0)
    assert bool(first.kernel.mean.isfinite().all())
