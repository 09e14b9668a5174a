"""Weighted searches on flows whose tilted laws are known: the Gaussian in closed form, a mixture by quadrature."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dav_ray.diffusion.noise_rules import NOISE_RULES
from dav_ray.mstep.fit import Fitter
from dav_ray.mstep.objective import Rows
from dav_ray.mstep.options import MStep
from dav_ray.search.dav import Dav
from dav_ray.search.smc import Smc
from dav_ray.testing.base import BulkNoise, scorer
from dav_ray.testing.distances import moments
from dav_ray.testing.flow import LinearFlow, MixtureFlow, even
from dav_ray.testing.gaussian import Quadratic, populations
from dav_ray.testing.mixture import nine_modes, sampler_line
from dav_ray.types import Cost

CONDITION, ALPHA, STEPS = "0.3", 0.3, 5
REWARD = Quadratic(centre=(1.0, -0.5), matrix=((2.0, 0.8), (0.8, 0.6)), offset=0.5)
SETTINGS = [("ddim", 1.0), ("cps", 0.5), ("cps", (0.7, 0.7)), ("renoise", 1.0), ("flow_sde", 0.7), ("dance", 0.7)]


def flow(rule: str, eta: Any, moved: float = 0.25) -> LinearFlow:
    """After an M-step, where `moved` is not 0."""
    return LinearFlow(even(STEPS), rule, eta).shifted(moved)


def off(found: Any, model: LinearFlow, of: torch.Tensor | None = None) -> list[float]:
    """Errors of mean, covariance and log Z, the largest of each, in standard errors."""
    assert found.log_weight is not None
    goal, seen = model.tilted(REWARD, ALPHA, CONDITION), moments(found.sample, found.log_weight, of)
    assert seen.mean_error.max() < 0.02 and seen.covariance_error.max() < 0.02 and seen.log_z_error < 0.03
    return [
        float(((seen.mean - goal.means[0]) / seen.mean_error).abs().max()),
        float(((seen.covariance - goal.covariance) / seen.covariance_error).abs().max()),
        abs(seen.log_z - float(goal.log_z)) / seen.log_z_error,
    ]


def test_every_rule_is_here() -> None:
    assert {rule for rule, _ in SETTINGS} == set(NOISE_RULES)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("rule, eta", SETTINGS)
def test_weighted_dav_has_the_tilted_law_and_normaliser(rule: str, eta: Any, gradient: bool) -> None:
    model, many = flow(rule, eta), 8000
    found = Dav(3, ALPHA, 0.9, gradient, 0.0)(model, scorer(REWARD), [CONDITION] * many, BulkNoise(7, many))
    assert max(off(found, model)) < 4


@pytest.mark.thorough
@pytest.mark.parametrize("rule, eta", [("ddim", 1.0), ("cps", (0.7, 0.7))])
def test_smc_has_it_and_its_normaliser_is_unbiased(rule: str, eta: Any) -> None:
    """E[Z_hat] = Z over small populations, while log Z_hat is biased down."""
    size, many = 6, 7200
    model, of = flow(rule, eta), torch.arange(many) // size
    conditions = populations(CONDITION, many // size, size)
    search = Smc(Dav(1, ALPHA, 0.9, True, 0.0), below=1.0)
    found = search(model, scorer(REWARD), conditions, BulkNoise(7, many))
    assert max(off(found, model, of)) < 4
    assert found.log_weight is not None
    each, goal = found.log_weight[::size], float(model.tilted(REWARD, ALPHA, CONDITION).log_z)
    ratio = (each - goal).exp()
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / len(each) ** 0.5 < 0.1
    assert (float(each.mean()) - goal) / (float(each.std()) / len(each) ** 0.5) < -4


def test_a_mixture_as_a_flow_has_its_tilted_law() -> None:
    """Coordinates are independent, and each is by quadrature what the flow's own steps end at."""
    data, many = nine_modes().data, 6000
    line = type(data).even(torch.tensor([[-4.0], [0.0], [4.0]]), 0.3)
    model = MixtureFlow(line, even(20))
    law = sampler_line(model)
    tilted, log_z = law.tilted(0.1, 1.0)
    found = Dav(3, 1.0, 0.95, False, 0.0)(
        model, scorer(Quadratic.diagonal((0.0,), (0.1,))), [""] * many, BulkNoise(3, many)
    )
    assert found.log_weight is not None
    seen = moments(found.sample, found.log_weight)
    assert abs(float(seen.mean[0])) < 4 * float(seen.mean_error[0]) < 0.2
    assert abs(float(seen.covariance[0, 0]) - tilted.mean_square()) < 4 * float(seen.covariance_error[0, 0])
    assert abs(seen.log_z - log_z) < 4 * seen.log_z_error < 0.1


@pytest.mark.parametrize("rule", NOISE_RULES)
def test_where_the_policy_is_the_reference_its_weights_have_no_ratio(rule: str) -> None:
    """At the first round: log p_theta - log p_theta0 of what was drawn is 0, and so is the KL."""
    model, num = flow(rule, 0.7, moved=0.0), 32
    found = Dav(3, ALPHA, 0.9, False, 0.0)(model, scorer(REWARD), [CONDITION] * num, BulkNoise(7, num))
    for t in range(STEPS, 1, -1):
        x_t, x_prev = found.states[STEPS - t], found.states[STEPS - t + 1]
        policy, reference = (model.predict(x_t, t, [CONDITION] * num, reference=r).kernel for r in (False, True))
        assert torch.equal(policy.log_prob(x_prev.unsqueeze(1)), reference.log_prob(x_prev.unsqueeze(1)))
        assert policy.kl(reference).tolist() == [0.0] * num


def test_steps_that_draw_nothing_cost_no_candidates_and_no_training() -> None:
    """Two noisy steps of five: three candidates at each, one state at the others; two of five transitions count."""
    num, candidates = 10, 3
    few, all_ = flow("cps", (0.7, 0.7), 0.0), flow("cps", 0.7, 0.0)
    costs: list[Cost] = []
    for model in (few, all_):
        search = Dav(candidates, ALPHA, 0.9, False, 0.0)
        found = search(model, scorer(REWARD), [CONDITION] * num, BulkNoise(7, num))
        costs.append(found.cost)
    # the first state; what is drawn at a step is guessed from at the next one; the last is decoded
    assert costs[0].network == num * (1 + 2 * candidates + 2)
    assert costs[1].network == num * (1 + 4 * candidates)

    for model, fitted in ((few, 2), (all_, 4)):
        search = Dav(candidates, ALPHA, 0.9, False, 0.0)
        states = search(model, scorer(REWARD), [CONDITION] * num, BulkNoise(7, num)).states.transpose(0, 1)
        weights = torch.ones(num, dtype=torch.float64)
        rows = Rows(states, None, (CONDITION,) * num, weights, torch.ones(num, dtype=torch.bool))
        before = model.cost.network
        Fitter(model, MStep(epochs=1, batch_size=8, kl=0.0), 0).fit(1, [rows])
        assert model.cost.network - before == num * fitted
        moved = model.shift.detach().abs().sum(1) > 0
        assert moved.nonzero().flatten().tolist() == list(range(STEPS - fitted + 1, STEPS + 1))
