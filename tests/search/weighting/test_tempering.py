"""Tempering: the schedules, and the largest step that keeps enough particles."""

from __future__ import annotations

import math

import pytest
import torch

from dav_ray.search.weighting.tempering import adaptive, conditional_share, fixed


def test_fixed_schedules_end_at_one() -> None:
    assert [fixed("discount", 0.5, t, 4) for t in (3, 1, 0)] == [0.125, 0.5, 1.0]
    assert [fixed("linear", 0.5, t, 4) for t in (4, 3, 1, 0)] == [0.0, 0.25, 0.75, 1.0]


def test_the_share_is_that_of_the_weights() -> None:
    log_w, increment = torch.tensor([0.0, 0.0, -math.inf]), torch.tensor([math.log(3.0), 0.0, 7.0])
    assert conditional_share(log_w, increment) == pytest.approx(4**2 / (2 * 10))
    assert conditional_share(torch.zeros(4), torch.full((4,), -5.0)) == pytest.approx(1)
    assert conditional_share(torch.zeros(2), torch.full((2,), -math.inf)) == 0


@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_the_step_keeps_the_share(share: float) -> None:
    """Two particles, one x ahead at temper 1: (1 + e^(x s))^2 / (2 (1 + e^(2 x s))) = share."""
    ahead = torch.tensor([0.0, 40.0], dtype=torch.float64)
    carried = torch.zeros(2, dtype=torch.float64)
    found = adaptive(share, carried, lambda temper: temper * ahead, 0.0)
    if share <= 0.5:
        assert found == 1.0  # one of two is always left
    else:
        assert 0 < found < 1
        assert conditional_share(carried, found * ahead) == pytest.approx(share, abs=1e-6)


def test_it_never_goes_back() -> None:
    carried, ahead = torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, 50.0, 90.0], dtype=torch.float64)
    assert adaptive(0.9, carried, lambda temper: temper * ahead, 0.4) == pytest.approx(0.4)
