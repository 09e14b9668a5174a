"""Waits and limits: one sentence for all that is late, and looks that are not too frequent."""

from __future__ import annotations

import time

import pytest

from dav_ray.errors import RunError
from dav_ray.runtime import interrupt
from dav_ray.runtime.cluster.deadlines import Deadline, Ticker, not_in_time, wait_until


def test_what_is_late_names_the_key_that_sets_its_limit() -> None:
    assert (
        not_in_time("no answer", 1.5, "search", "call_timeout_s") == "no answer in 1.5 s (roles.search.call_timeout_s)"
    )
    started = Deadline("train", 300.0, began=time.monotonic() - 301)
    assert started.passed and 301 <= started.waited_s < 400
    words = "train: 1 of 2 ranks found a place in 300 s (roles.train.start_timeout_s): why; see dav-ray doctor"
    assert str(started.error("1 of 2 ranks found a place", ": why")) == words
    assert str(Deadline("reward", 2.0, "call_timeout_s").error("x")) == "reward: x in 2 s (roles.reward.call_timeout_s)"
    assert not Deadline("search", 60.0).passed


def test_a_wait_ends_once_it_is_true() -> None:
    left = [False, False, True]
    wait_until(lambda: left.pop(0), 0.0)
    assert left == []


def test_a_wait_ends_with_what_another_thread_demands() -> None:
    gone = RunError("driver", "another driver has taken over this run")
    interrupt.demand(gone)
    try:
        with pytest.raises(RunError, match="another driver"):
            wait_until(lambda: False, 0.0)
    finally:
        interrupt.forget()


def test_a_ticker_lets_one_look_pass_in_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    later, at_once = Ticker(2.0), Ticker(2.0, at_once=True)
    assert not later.take() and at_once.take() and not at_once.take()
    now[0] = 101.9
    assert not later.due
    now[0] = 102.0
    assert later.due and later.due and later.take() and not later.due
    now[0] = 103.9
    later.restart()
    now[0] = 105.8
    assert not later.due and at_once.take()
