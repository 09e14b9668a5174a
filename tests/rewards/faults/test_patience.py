"""Pauses between tries, on a clock that the tests set."""

from __future__ import annotations

import math

from dav_ray.rewards.faults.patience import FIRST_S, LONGEST_S, SPREAD, Patience


def pauses(budget_s: float, draw: float, retry_after_s: float | None = None) -> list[float]:
    patience, now, found = Patience(budget_s), 100.0, []
    while (pause := patience.pause(now, draw, retry_after_s)) is not None:
        found.append(pause)
        now += pause
    return found


def test_pauses_double_up_to_a_limit_within_the_budget() -> None:
    assert pauses(200.0, 0.0) == [1, 2, 4, 8, 16, 32, LONGEST_S, LONGEST_S]
    assert sum(pauses(200.0, 0.0)) <= 200.0


def test_a_part_of_each_pause_is_drawn() -> None:
    whole, short = pauses(60.0, 0.0), pauses(60.0, 0.5)
    assert short[: len(whole)] == [pause * (1 - SPREAD / 2) for pause in whole]


def test_nobody_comes_before_the_time_that_was_asked_for() -> None:
    assert pauses(50.0, 0.0, 20.0) == [20, 20]
    drawn = pauses(50.0, 0.9, 20.0)
    assert drawn == [20 + SPREAD * 0.9 * FIRST_S] * 2  # not all at once


def test_no_budget_no_try() -> None:
    assert pauses(0.0, 0.0) == [] and pauses(10.0, 0.0, 11.0) == []


def test_many_tries_are_no_overflow() -> None:
    patience = Patience(math.inf)
    assert [patience.pause(0.0, 0.0) for _ in range(2000)][-1] == LONGEST_S
