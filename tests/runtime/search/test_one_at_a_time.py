"""One of a worker's calls computes at a time; one that waits hears that nobody wants it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from dav_ray.errors import Stopped
from dav_ray.runtime.search.one_at_a_time import OneAtATime
from tests.support.deadlines import stretched


def test_turns_do_not_overlap_and_what_comes_after_them_does() -> None:
    one, spans, met = OneAtATime(), list[tuple[float, float]](), threading.Barrier(2, timeout=stretched(10))

    def call() -> None:
        with one.turn(lambda: False):
            start = time.monotonic()
            time.sleep(0.05)
            spans.append((start, time.monotonic()))
        met.wait()  # both are here at a time, or it breaks

    with ThreadPoolExecutor(2) as pool:
        for each in [pool.submit(call) for _ in range(2)]:
            each.result()
    (_, end), (start, _) = sorted(spans)
    assert end <= start


def test_a_call_that_waits_hears_that_it_is_not_wanted() -> None:
    one = OneAtATime()
    with one.turn(lambda: False), ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        waiting = pool.submit(lambda: one.turn(lambda: True).__enter__())
        with pytest.raises(Stopped):
            waiting.result(timeout=stretched(10))
        assert time.monotonic() - began < stretched(2)
    with one.turn(lambda: False):  # and has taken nothing
        pass


def test_what_is_not_wanted_does_not_start_and_what_fails_makes_room() -> None:
    one = OneAtATime()
    with pytest.raises(Stopped), one.turn(lambda: True):
        raise AssertionError("it computes")
    with pytest.raises(ValueError, match="no"), one.turn(lambda: False):
        raise ValueError("no")
    with one.turn(lambda: False):
        pass
