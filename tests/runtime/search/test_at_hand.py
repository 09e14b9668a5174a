"""Pull scheduling where a worker has a second item at hand, with a clock of the test's own."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from dav_ray.runtime.search.schedule import Exhausted, Schedule


def test_a_busy_worker_has_one_more_item_at_hand() -> None:
    """The lowest that waits; it has begun with it once it is done with the first one."""
    schedule = Schedule(list("abcde"), attempts=1)
    assert [schedule.next("w0", 0), schedule.next("w1", 0)] == ["a", "b"]
    assert [schedule.ahead("w0", 0), schedule.ahead("w0", 0), schedule.ahead("w1", 0)] == ["c", None, "d"]
    with pytest.raises(ValueError, match="worker w0 is busy"):
        schedule.next("w0", 0)
    assert schedule.complete("w0", 4, "a")
    assert schedule.ahead("w0", 4) == "e" and schedule.ahead("w0", 4) is None
    assert schedule.complete("w1", 5, "d")  # in another order than that in which they were handed out
    assert schedule.ahead("w1", 5) is None  # nothing waits
    for second, (worker, item) in enumerate([("w0", "c"), ("w1", "b"), ("w0", "e")], 6):
        assert schedule.complete(worker, second, item)
    assert schedule.finished and schedule.done == 5


def test_an_item_at_hand_starts_when_the_one_before_it_is_done() -> None:
    """Three items in nine seconds, of which there were two at a time: it takes three seconds for one."""
    schedule = Schedule(list("abcd"), attempts=1)
    schedule.next("w", 0)
    for second, (item, following) in enumerate(zip("abc", "bcd", strict=True)):
        assert schedule.ahead("w", 3 * second) == following
        schedule.complete("w", 3 * second + 3, item)
    assert schedule.next("fast", 10) is None  # d is there in two seconds, and fast is taken to need three
    assert schedule.next("fast", 15.5) == "d"  # late by three and a half


def test_a_free_worker_takes_what_another_has_not_started() -> None:
    """Also before it is known how long an item takes. What runs is left alone then."""
    schedule = Schedule(["a", "b"], attempts=1)
    schedule.next("slow", 0)
    schedule.ahead("slow", 0)
    assert schedule.next("new", 1) == "b" and schedule.doubled("new", "b") and not schedule.doubled("slow", "a")
    assert schedule.next("third", 1) is None
    assert schedule.complete("new", 2, "b")
    assert schedule.returned("slow", 2, "b") is None  # told to leave it; nobody needs it
    assert schedule.complete("slow", 9, "a") and schedule.finished


def test_what_waits_behind_the_slowest_is_taken_first() -> None:
    schedule = Schedule(list("abcdefgh"), attempts=1)
    for worker, items in (("slow", 1), ("fast", 2)):
        for _ in range(items):
            schedule.next(worker, 0)
            schedule.complete(worker, 8 / items)
    assert [schedule.next("slow", 8), schedule.next("fast", 8)] == ["d", "e"]
    assert [schedule.ahead("slow", 8), schedule.ahead("fast", 8)] == ["f", "g"]
    assert [schedule.next("new", 8), schedule.next("more", 8)] == ["h", "f"]  # f would be there at 24


def test_an_item_that_was_told_to_be_left_waits_again() -> None:
    """It does not count as lost, and others may be at hand beside it."""
    schedule = Schedule(list("abc"), attempts=1)
    schedule.next("w", 0)
    schedule.ahead("w", 0)
    assert schedule.returned("w", 1, "b") == "b"
    assert schedule.ahead("w", 1) == "b"
    assert schedule.returned("w", 2, "a") == "a" and schedule.ahead("w", 2) == "a"


def test_what_a_worker_was_lost_with_goes_alone() -> None:
    """One of the two may be what ends workers: each has the next one for itself."""
    schedule = Schedule(list("abcd"), attempts=3)
    schedule.next("w", 0)
    schedule.ahead("w", 0)
    assert [schedule.lost("w", "a"), schedule.lost("w", "b")] == ["a", "b"]
    assert schedule.next("w", 1) == "a" and schedule.ahead("w", 1) is None  # b is not put beside it
    assert schedule.next("v", 1) == "b" and schedule.ahead("v", 1) is None  # nor is c
    assert schedule.complete("w", 2, "a")
    assert schedule.next("w", 2) == "c" and schedule.ahead("w", 2) == "d"
    assert schedule.lost("v", "b") == "b"
    assert schedule.next("v", 3) == "b"
    with pytest.raises(Exhausted, match="lost 3 times"):
        schedule.lost("v", "b")


def test_what_hangs_is_late_and_what_is_at_hand_beside_it_is_not() -> None:
    schedule = Schedule(list("ab"), attempts=1, delays=2)
    schedule.next("w", 0)
    schedule.ahead("w", 0)
    assert schedule.late("w", "a") == "a" and schedule.lost("w", "b", counts=False) == "b"
    assert schedule.next("w", 1) == "a" and schedule.ahead("w", 1) is None
    with pytest.raises(Exhausted, match=r"late 2 times \(on w, w\)"):
        schedule.late("w", "a")


@pytest.mark.parametrize("in_order", [True, False])
def test_a_late_first_item_is_next_where_order_matters_though_nobody_is_free(in_order: bool) -> None:
    """Everybody has something at hand until nothing waits. Its own worker is not given it again."""
    schedule = Schedule(list("abcdefghi"), attempts=2, in_order=in_order)
    assert [schedule.next("w0", 0), schedule.next("w1", 0), schedule.ahead("w0", 0)] == list("abc")
    assert schedule.complete("w1", 1) and schedule.next("w1", 1) == "d"
    assert schedule.ahead("w1", 1) == "e"
    assert schedule.complete("w0", 2, "c") and schedule.complete("w1", 2, "d")  # a is overtaken
    assert schedule.ahead("w0", 5) == "f"
    assert schedule.ahead("w1", 5) == ("a" if in_order else "g")
    assert schedule.complete("w1", 6, "e")
    assert schedule.ahead("w1", 6) == ("g" if in_order else "h")


@dataclass
class Copy:
    """An item at a worker of the simulation: it is computed from start to end, and stored then."""

    worker: int
    item: int
    start: float
    end: float


def simulate_storing(workers: int, chunks: int, seed: int, store: float, *, ahead: bool) -> float:
    """The time until all are done relative to that of computing alone, cut at will, in a pool whose speeds differ
    fourfold and that takes `store` seconds more to store each item: beside the next one, or after it."""
    rng, schedule, now = random.Random(seed), Schedule(range(chunks), 3), 0.0
    pace = [1 + 3 * i / (workers - 1) for i in range(workers)]
    copies: list[Copy] = []
    while not schedule.finished:
        for ask in (schedule.next, schedule.ahead) if ahead else (schedule.next,):
            busy = {copy.worker for copy in copies}
            for worker in range(workers):
                if (worker in busy) == (ask == schedule.ahead) and (item := ask(worker, now)) is not None:
                    start = max([now, *(copy.end for copy in copies if copy.worker == worker)])
                    copies.append(Copy(worker, item, start, start + pace[worker] * rng.lognormvariate(0, 0.1)))
        done = min(copies, key=lambda copy: copy.end)
        now = done.end + store
        copies.remove(done)
        assert schedule.complete(done.worker, now, done.item)
        for copy in [copy for copy in copies if copy.item == done.item]:
            copies.remove(copy)
            schedule.returned(copy.worker, now, copy.item)
            for later in copies:
                if later.worker == copy.worker and later.start >= copy.end:
                    begin = max(now, copy.start)
                    later.start, later.end = begin, begin + later.end - later.start
    return now * sum(1 / p for p in pace) / chunks


def test_a_mixed_pool_stores_beside_what_it_computes_and_nobody_waits_for_what_is_at_hand() -> None:
    """Half a second to store what takes one to four to compute: that time is gone but for the last ones, and a slow
    worker's second item does not make the end of the round later."""
    for seed in range(3):
        serial, beside = (simulate_storing(16, 160, seed, 0.5, ahead=ahead) for ahead in (False, True))
        assert beside < 1.15 < 1.25 < serial
        short = [simulate_storing(16, 48, seed, 0.5, ahead=ahead) for ahead in (False, True)]  # three items each
        assert short[1] < short[0]
        assert simulate_storing(16, 160, seed, 0.0, ahead=True) < 1.09  # where storing takes no time
