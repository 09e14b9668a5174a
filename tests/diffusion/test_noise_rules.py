"""Noise rules against their closed forms: three keep the level of the noise exactly, the others in first order."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from dav_ray.diffusion import noise_rules
from dav_ray.diffusion.gaussian import GaussianSteps
from dav_ray.diffusion.noise_rules import FLOWS_ALONE, NOISE_RULES, Level
from dav_ray.search.options import Search

KEEPING = ["ddim", "cps", "renoise"]


def flow(steps: int, least: float = 0.0) -> list[Level]:
    """Levels 0..T of a flow, [0] the clean one."""
    return [Level(1 - s, s) for s in (least + (1 - least) * k / steps for k in range(steps + 1))]


def preserving(steps: int) -> list[Level]:
    """Of a variance-preserving model: a cosine's."""
    angles = [k / steps * 1.5 for k in range(steps + 1)]
    return [Level(math.cos(a), math.sin(a)) for a in angles]


@pytest.mark.parametrize("levels", [flow(7), preserving(7)], ids=["flow", "preserving"])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("rule", KEEPING)
def test_given_the_clean_state_the_next_level_is_exact(rule: str, eta: float, levels: list[Level]) -> None:
    """With x_t = alpha x_0 + sigma eps and the true x_0, x_{t-1} is N(alpha' x_0, sigma'^2): carried^2 + std^2."""
    found = noise_rules.steps(levels, rule, eta)
    for then, step in zip(levels, found, strict=False):
        assert step.carried**2 + step.std**2 == pytest.approx(then.sigma**2, abs=1e-15)
        assert (step.std == 0) == (eta == 0 or then.sigma == 0)


@pytest.mark.parametrize("rule", sorted(FLOWS_ALONE))
def test_the_other_rules_are_off_by_the_square_of_the_step(rule: str) -> None:
    """The error of the level's variance in one step, from the same level: halving the step divides it by four."""
    errors = []
    for dt in (0.1, 0.05, 0.025):
        (step,) = noise_rules.steps([Level(0.5 + dt, 0.5 - dt), Level(0.5, 0.5)], rule, 0.7)
        errors.append(abs(step.carried**2 + step.std**2 - (0.5 - dt) ** 2))
    assert all(before / after == pytest.approx(4, rel=0.25) for before, after in pairwise(errors))


def test_cps_at_one_is_renoise_and_ddim_at_zero_is_cps_at_zero() -> None:
    for levels in (flow(5), preserving(5)):
        for one, other in zip(
            noise_rules.steps(levels, "cps", 1.0), noise_rules.steps(levels, "renoise", 1.0), strict=True
        ):
            assert one.std == pytest.approx(other.std) and one.carried == pytest.approx(0, abs=1e-7)
        assert noise_rules.steps(levels, "ddim", 0.0) == noise_rules.steps(levels, "cps", 0.0)


def test_ddim_with_eta_is_flow_sde_with_root_two_eta_in_small_steps() -> None:
    eta, s, dt = 0.5, 0.6, 1e-5
    levels = [Level(1 - s + dt, s - dt), Level(1 - s, s)]
    (ours,), (theirs,) = (
        noise_rules.steps(levels, rule, share) for rule, share in (("ddim", eta), ("flow_sde", math.sqrt(2) * eta))
    )
    assert ours.std == pytest.approx(theirs.std, rel=1e-4)
    assert ours.carried == pytest.approx(theirs.carried, rel=1e-8)


@pytest.mark.parametrize("rule", sorted(FLOWS_ALONE))
def test_flow_rules_are_the_published_formulas(rule: str) -> None:
    """In x and the velocity v = eps - x_0, as their papers and code have them; sigma = 1 takes the next denominator."""
    a, generator = 0.7, torch.Generator().manual_seed(0)
    x, v = (torch.randn(1, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    for s, after in ((1.0, 0.8), (0.6, 0.4)):
        dt = after - s
        if rule == "flow_sde":
            g = a * math.sqrt(s / (1 - (after if s == 1 else s)))
            mean = x * (1 + g**2 / (2 * s) * dt) + v * (1 + g**2 * (1 - s) / (2 * s)) * dt
            std = g * math.sqrt(-dt)
        else:
            mean = x + (v + 0.5 * a**2 * (x - (1 - s) * (x - s * v)) / s**2) * dt
            std = a * math.sqrt(-dt)
        steps = GaussianSteps.of(
            torch.zeros(2), [Level(1 - after, after), Level(1 - s, s)], rule, a, prediction="flow_prediction"
        )
        kernel, x0 = steps.kernel(x.float(), v.float(), torch.tensor([1]))
        torch.testing.assert_close(kernel.mean, mean.float(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(x0, (x - s * v).float(), rtol=1e-5, atol=1e-6)
        assert float(kernel.std) == pytest.approx(std, rel=1e-6)


def test_the_first_step_of_a_flow_is_finite() -> None:
    for rule in NOISE_RULES:
        steps = GaussianSteps.of(torch.zeros(5), flow(4), rule, 0.7, prediction="flow_prediction")
        x = torch.ones(1, 3)
        kernel, _ = steps.kernel(x, x, torch.tensor([4]))
        assert bool(kernel.mean.isfinite().all()) and 0 < float(kernel.std) < math.inf
        assert float(kernel.log_prob(x.unsqueeze(1))) == float(kernel.log_prob(x.unsqueeze(1)))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow_prediction", "sample"])
def test_each_prediction_says_the_same_sample_and_noise(prediction: str) -> None:
    """From the network's output for a known x_0 and eps, at levels where it is defined."""
    level = Level(0.4, 0.6) if prediction == "flow_prediction" else Level(0.6, 0.8)
    generator = torch.Generator().manual_seed(1)
    x0, eps = (torch.randn(2, 5, generator=generator) for _ in range(2))
    said = {
        "epsilon": eps,
        "v_prediction": level.alpha * eps - level.sigma * x0,
        "flow_prediction": eps - x0,
        "sample": x0,
    }
    then = Level(0.9, 0.1)
    steps = GaussianSteps.of(torch.zeros(2), [then, level], "ddim", 0.0, prediction=prediction)
    x = level.alpha * x0 + level.sigma * eps
    kernel, found = steps.kernel(x, said[prediction], torch.tensor([1, 1]))
    torch.testing.assert_close(found, x0, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kernel.mean, then.alpha * x0 + then.sigma * eps, rtol=1e-5, atol=1e-5)


def test_renoise_has_the_moments_of_the_forward_process() -> None:
    """From any level to any noisier one: mean a x, variance sigma_end^2 - (a sigma_start)^2."""

    class Draws:
        def normal(self, shape: tuple[int, ...]) -> torch.Tensor:
            return torch.ones(4, *shape)

    levels = flow(6)
    steps = GaussianSteps.of(torch.zeros(7), levels, "ddim", 1.0, prediction="flow_prediction")
    x = torch.full((4, 2), 3.0)
    for start, end in ((0, 3), (2, 5), (1, 6)):
        a = levels[end].alpha / levels[start].alpha
        std = math.sqrt(levels[end].sigma ** 2 - (a * levels[start].sigma) ** 2)
        torch.testing.assert_close(steps.renoise(x, start, end, Draws()), torch.full((4, 2), 3 * a + std))  # type: ignore[arg-type]


def test_eta_may_be_a_schedule() -> None:
    assert noise_rules.schedule(0.5, 3) == [0.5] * 3
    assert noise_rules.schedule([1.0, 0.5], 4) == [1.0, 0.5, 0.0, 0.0]
    search = Search.model_validate({"steps": 4, "eta": [1.0, 0.5]})
    assert search.eta == (1.0, 0.5) and search.walked == {2} and search.facts.unscored == {1}
    stds = [step.std for step in noise_rules.steps(flow(4), "cps", search.eta)]
    assert stds[2] > 0 and stds[3] > 0 and stds[:2] == [0.0, 0.0]


@pytest.mark.parametrize(
    "section, word",
    [
        ({"eta": 2}, "out of range"),
        ({"eta": [1.0, -1]}, "out of range"),
        ({"eta": [0.0, 0.0]}, "stochastic"),
        ({"steps": 2, "eta": [1, 1, 1]}, "has 3 numbers; allowed: 1 to search.steps = 2"),
        ({"eta": "much"}, "wrong type"),
        ({"noise": "sde"}, "unknown value"),
        ({"steps": 4, "eta": [1.0], "anchor": "pretrained"}, "steps that draw nothing follow the current model"),
    ],
)
def test_what_is_no_schedule_is_said(section: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Search.model_validate(section)
