"""mstep.steps: k of the T steps of each trajectory, in place of all."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from dav_ray.config.plan import plan, render
from dav_ray.config.recipe.load import load
from dav_ray.errors import UserError
from dav_ray.mstep import fit
from dav_ray.mstep.fit import Fitter
from dav_ray.mstep.objective import Rows, choose_steps
from dav_ray.mstep.options import MStep
from dav_ray.testing.gaussian import LinearGaussian
from tests.mstep.test_fit import CONFIG, T, fitted, rows


def first_gradient(data: Rows, **options: Any) -> Tensor:
    """AdamW remembers a tenth of the gradient of its first step."""
    toy = LinearGaussian(T, 2).shifted(0.5)
    fitter = Fitter(toy, MStep(**{**CONFIG, **options}), 7)
    fitter.fit(1, [data])
    return 10 * fitter.optimizer.state[toy.shift]["exp_avg"].double()


def test_the_gradients_expectation_is_that_of_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over every pair of sets that two trajectories can draw."""
    data, sets = rows(2), list(itertools.combinations(range(1, T + 1), 2))
    found = []
    for drawn in itertools.product(sets, sets):
        chosen = iter(drawn)
        monkeypatch.setattr(fit, "choose_steps", lambda *_, chosen=chosen: torch.tensor(next(chosen)))
        found.append(first_gradient(data, steps=2))
    torch.testing.assert_close(torch.stack(found).mean(0), first_gradient(data), rtol=1e-4, atol=1e-5)
    assert torch.stack(found).std(0).max() > 0.01  # each alone is another


def test_every_set_of_steps_is_as_likely() -> None:
    stream, many = torch.Generator().manual_seed(0), 6000
    counts = Counter(tuple(sorted(choose_steps(T, 2, stream).tolist())) for _ in range(many))
    assert set(counts) == set(itertools.combinations(range(1, T + 1), 2))
    statistic = sum((count - many / 6) ** 2 / (many / 6) for count in counts.values())
    assert statistic < 20.5  # chi-square with 5 degrees of freedom, 0.999


def test_all_steps_are_the_same_bits_as_no_choice() -> None:
    options: dict[str, Any] = {"batch_size": 6, "epochs": 2}
    whole, metrics = fitted([rows(5)], **options)
    chosen, same = fitted([rows(5)], steps=T, **options)
    assert torch.equal(whole, chosen)
    assert metrics["mstep/nll"] == same["mstep/nll"] and metrics["mstep/optimizer_steps"] == 8


def test_a_part_of_the_steps_costs_a_part() -> None:
    seen: Counter[int] = Counter()
    toy = LinearGaussian(T, 2).shifted(0.5)
    step_loss = toy.step_loss

    def counted(batch: Any, reference: bool) -> Any:
        seen.update(batch.t.tolist())
        return step_loss(batch, reference=reference)

    toy.step_loss = counted  # type: ignore[method-assign]
    _, metrics = fitted([rows(5)], toy=toy, steps=2, batch_size=4, epochs=20)
    assert metrics["mstep/optimizer_steps"] == 20 * 3
    assert sum(seen.values()) == 20 * 5 * 2 and set(seen) == {1, 2, 3, 4}


def test_sums_are_unbiased_too() -> None:
    """Metrics are nats per trajectory: over many epochs at one place, those of all steps."""
    still: dict[str, Any] = {"learning_rate": 1e-12, "weight_decay": 0.0}
    _, whole = fitted([rows(5)], **still)
    _, some = fitted([rows(5)], steps=1, epochs=400, **still)
    for name in ("mstep/nll", "mstep/kl"):
        assert some[name] == pytest.approx(whole[name], rel=0.1)


def test_a_trajectory_draws_for_itself_alone() -> None:
    """Not for its place, group or rank."""
    fitter = Fitter(LinearGaussian(T, 2), MStep(**CONFIG, steps=2), 7)
    data = rows(6)
    numbered = Rows(data.states, None, data.conditions, data.weights, data.real, (5, 9, 1, 0, 12, 3))
    some = Rows(data.states[2:4], None, data.conditions[2:4], data.weights[2:4], data.real[2:4], (1, 0))
    whole = fitter._chosen(numbered, (3, 1, 0))
    part = fitter._chosen(some, (3, 1, 8))
    assert whole is not None and part is not None and torch.equal(whole[2:4], part)
    others = [fitter._chosen(numbered, key) for key in ((4, 1, 0), (3, 2, 0))]
    assert all(other is not None and not torch.equal(whole, other) for other in others)


def test_the_plan_counts_what_is_fitted() -> None:
    whole, some = load("digits", []).config, load("digits", ["mstep.steps=5"]).config
    assert plan(whole).transitions == 64 * 20 and plan(some).transitions == 64 * 5
    # 4 groups of 16 x 5 over 2 ranks: 40 of 64 at a time, then 160 of 64
    assert plan(some).optimizer_steps == 4 * 1 + 3
    assert "320 transitions (5 of 20 of each trajectory), 7 optimizer steps" in render(some, plan(some))
    assert "of each trajectory" not in render(whole, plan(whole))
    noisy = load("digits_flow").config  # noise at five steps of ten; the last step has none whatever eta is
    assert "320 transitions (5 of 10 of each trajectory)" in render(noisy, plan(noisy))
    last = load("digits_flow", ["search.eta=[0, 0, 1, 0, 0, 0, 0, 0, 0, 1]"]).config
    assert "128 transitions (2 of 10 of each trajectory)" in render(last, plan(last))
    with pytest.raises(UserError, match="mstep.steps = 21: a trajectory has 20; allowed: 1 to 20"):
        load("digits", ["mstep.steps=21"])
