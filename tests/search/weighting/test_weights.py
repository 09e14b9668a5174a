"""The weights of the search against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dav_ray.search.weighting.weights import INFEASIBLE_GAP, choose, effective_size, log_z, logmeanexp, normalise, value

INF = math.inf


def table(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("t", [0, 1, 2, 5])
def test_value_is_the_discounted_reward_over_alpha(t: int) -> None:
    reward = torch.tensor([[2.0, -3.0], [0.0, -1e12]])
    v = value(reward, alpha=0.5, temper=0.9**t, t=t)

    assert v.dtype == torch.float64
    assert v.flatten().tolist() == pytest.approx([4 * 0.9**t, -6 * 0.9**t, 0.0, -2e12 * 0.9**t], rel=1e-6)


def test_only_the_value_of_the_last_state_may_be_infinite() -> None:
    """Before it, an infeasible guess stands a fixed gap below the worst feasible one of its own row."""
    reward = table([-INF, -2.0, 1.0], [-INF, -INF, 1e3], [-INF, -INF, -INF], [0.5, 4.0, 3.0])

    assert value(reward, 0.5, 1.0, 0).tolist() == (2 * reward).tolist()
    assert value(reward, 0.5, 0.9, 1).tolist() == [
        pytest.approx([-3.6 - INFEASIBLE_GAP, -3.6, 1.8]),
        pytest.approx([1800 - INFEASIBLE_GAP, 1800 - INFEASIBLE_GAP, 1800]),
        [0.0, 0.0, 0.0],
        pytest.approx([0.9, 7.2, 5.4]),
    ]


@pytest.mark.parametrize("constant", [7.0, -64.0])
def test_a_constant_moves_every_value_alike(constant: float) -> None:
    """An infeasible guess moves with its row, so that choices see no constant. A row without a feasible one is 0."""
    reward = table([-INF, -2.0, 1.0], [5.0, -INF, -INF])
    moved = value(reward + constant, 0.5, 0.81, 2) - value(reward, 0.5, 0.81, 2)

    assert moved.flatten().tolist() == pytest.approx([0.81 * constant / 0.5] * 6)


def test_logmeanexp_is_the_log_of_the_mean_weight() -> None:
    weights = table([1.0, 2.0, 6.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0])

    assert logmeanexp(weights.log()).tolist() == pytest.approx([math.log(3), 0.0, -INF], abs=1e-12)
    assert logmeanexp(table([1e6, 1e6 + math.log(3)])).item() == pytest.approx(1e6 + math.log(2), abs=1e-9)
    assert logmeanexp(table([-1.25])).item() == -1.25


@pytest.mark.parametrize("shift", [0.0, 700.0, -1e6])
def test_choose_has_the_frequencies_of_the_softmax(shift: float) -> None:
    """On a grid of u, inversion gives each candidate its share exactly, up to one point at either edge."""
    weights, num = torch.tensor([1.0, 0.0, 5.0, 2.0], dtype=torch.float64), 8000
    u = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    counts = torch.bincount(choose((weights.log() + shift).expand(num, 4), u), minlength=4)

    assert counts[1] == 0
    assert (counts - num * weights / 8).abs().max() <= 1


def test_choose_inverts_u_row_by_row() -> None:
    log_w = table([1.0, 1.0], [3.0, 1.0], [1.0, 3.0], [0.0, 1.0]).log()
    u = torch.tensor([0.49, 0.74, 0.26, 0.0], dtype=torch.float64)

    assert choose(log_w, u).tolist() == [0, 0, 1, 1]


def test_choose_never_takes_a_candidate_without_weight() -> None:
    below_one = math.nextafter(1.0, 0.0)
    log_w = table([-INF, 0.0, -INF, 1.0, -INF]).expand(3, 5)

    assert choose(log_w, torch.tensor([0.0, 0.5, below_one], dtype=torch.float64)).tolist() == [1, 3, 3]


def test_rows_without_any_weight_are_drawn_uniformly() -> None:
    u = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)

    assert choose(torch.full((4, 4), -INF), u).tolist() == [0, 1, 2, 3]


def test_effective_size() -> None:
    weights = table([1, 1, 1, 1], [0, 0, 7, 0], [2, 2, 0, 0], [1, 2, 3, 4], [0, 0, 0, 0])

    assert effective_size(weights.log()).tolist() == pytest.approx([4, 1, 2, 100 / 30, 0])
    assert effective_size(weights.log() - 1e5).tolist() == pytest.approx([4, 1, 2, 100 / 30, 0])


def test_normalise_gives_mean_one_within_each_condition() -> None:
    log_weight = [math.log(1) + 900, math.log(4) - 900, math.log(3) + 900, math.log(12) - 900, -INF]
    weights = normalise(log_weight, ["a", "b", "a", "b", "b"])

    assert weights == pytest.approx([0.5, 3 * 4 / 16, 1.5, 3 * 12 / 16, 0.0])


def test_a_condition_without_any_weight_stays_at_zero() -> None:
    assert normalise([-INF, -INF, 5.0], ["a", "a", "b"]) == [0.0, 0.0, 1.0]


def test_log_z_is_the_log_of_the_mean_weight_of_each_condition() -> None:
    """Not the mean of log weights, which is biased down."""
    found = log_z([math.log(1), math.log(4), math.log(3), -INF], ["a", "b", "a", "b"])
    assert found == pytest.approx((math.log(2) + math.log(2)) / 2)
    assert log_z([-INF, 1.0], ["a", "b"]) == -INF


@pytest.mark.parametrize("temper", [0.0, 1.0])
def test_an_alpha_next_to_nothing_or_to_infinity_gives_numbers(temper: float) -> None:
    """V stays finite, so that the best is chosen, or nobody."""
    reward = table([-2.0, 1.0, 3.0, -INF])
    tiny, huge = value(reward, 5e-324, temper, 1), value(reward, 1e308, temper, 1)
    assert torch.isfinite(tiny).all() and torch.isfinite(huge).all()
    assert effective_size(huge[:, :3]).item() == pytest.approx(3)
    if temper:
        assert all(choose(tiny, torch.tensor([u])).item() in (1, 2) for u in (0.0, 0.3, 1 - 1e-16))


def test_rounding_never_chooses_a_weight_of_zero() -> None:
    for u in (0.0, 1 - 2**-53):
        assert choose(table([-INF, 0.0, -INF]), torch.tensor([u], dtype=torch.float64)).item() == 1
