"""Pull scheduling: who gets what, with a clock of the test's own."""

from __future__ import annotations

import heapq
import random

import pytest

from dav_ray.config.partition import round_prompts
from dav_ray.runtime.search.schedule import Exhausted, Schedule


def test_items_are_pulled_in_order_by_whoever_is_free() -> None:
    schedule = Schedule(["a", "b", "c"], attempts=1)

    assert [schedule.next("fast", 0), schedule.next("slow", 0)] == ["a", "b"]
    assert schedule.complete("fast", 1)
    assert schedule.next("fast", 1) == "c"
    assert schedule.complete("fast", 2)
    assert (schedule.done, schedule.finished) == (2, False)
    assert schedule.complete("slow", 2)
    assert (schedule.done, schedule.finished) == (3, True)
    assert schedule.next("fast", 3) is None


def test_a_lost_item_goes_out_again_before_new_ones() -> None:
    schedule = Schedule(["a", "b", "c", "d"], attempts=2)
    for worker in ("w0", "w1", "w2"):
        schedule.next(worker, 0)

    assert schedule.lost("w2") == "c"
    assert schedule.lost("w1") == "b"
    assert [schedule.next(w, 0) for w in ("w1", "w2", "w3", "w4")] == ["b", "c", "d", None]


def test_an_item_that_is_lost_too_often_ends_it() -> None:
    schedule = Schedule(["a", "b"], attempts=2)
    schedule.next("w0", 0)
    schedule.next("w1", 0)
    schedule.lost("w0")
    assert schedule.next("w0", 0) == "a"
    with pytest.raises(Exhausted, match="lost 2 times"):
        schedule.lost("w0")


def test_an_item_that_is_late_too_often_ends_it_and_names_its_workers() -> None:
    schedule = Schedule(["a", "b"], attempts=9, delays=3)
    for worker in ("w0", "w1"):
        schedule.next(worker, 0)
        assert schedule.late(worker) == "a"
        schedule.next("w9", 0)
        assert schedule.lost("w9") == "a"  # another budget
    schedule.next("w0", 0)
    with pytest.raises(Exhausted, match=r"late 3 times \(on w0, w1, w0\)"):
        schedule.late("w0")


def test_losses_that_do_not_count_are_for_nothing() -> None:
    schedule = Schedule(["a"], attempts=1)
    for _ in range(5):
        schedule.next("w0", 0)
        assert schedule.lost("w0", counts=False) == "a"


def test_a_copy_that_is_late_counts_and_one_of_an_item_that_is_done_does_not() -> None:
    schedule = tail_of_a_round()
    schedule.next("fast", 11)
    assert schedule.late("slow") is None  # the other one has it
    assert schedule.complete("fast", 12) and schedule.finished
    schedule = tail_of_a_round(delays=1)
    schedule.next("fast", 11)
    assert schedule.complete("fast", 12)
    assert schedule.late("slow") is None


def test_losses_are_counted_per_item() -> None:
    schedule = Schedule(["a", "b"], attempts=2)
    for _ in range(2):
        schedule.next("w0", 0)
        if schedule.done == 0:
            schedule.lost("w0")
            schedule.next("w0", 0)
            schedule.complete("w0", 1)
        else:
            assert schedule.lost("w0") == "b"


def test_a_busy_worker_gets_nothing() -> None:
    schedule = Schedule(["a", "b"], attempts=1)
    schedule.next("w0", 0)
    with pytest.raises(ValueError, match="worker w0 is busy"):
        schedule.next("w0", 0)


def test_nothing_to_do_is_finished() -> None:
    schedule: Schedule[str] = Schedule([], attempts=1)

    assert schedule.finished
    assert schedule.next("w0", 0) is None


def tail_of_a_round(delays: int = 3) -> Schedule[str]:
    """fast takes 1 s, slow 10 s; at 10 s fast is free and slow has just begun with its second."""
    schedule = Schedule(["s1", *(f"f{i}" for i in range(9)), "s2", "f9"], 2, delays)
    schedule.next("slow", 0)
    for second in range(9):
        schedule.next("fast", second)
        schedule.complete("fast", second + 1)
    schedule.complete("slow", 10)
    assert schedule.next("slow", 10) == "s2"
    assert schedule.next("fast", 10) == "f9"
    schedule.complete("fast", 11)
    return schedule


def test_a_fast_worker_doubles_what_a_slow_one_has_and_the_first_result_counts() -> None:
    schedule = tail_of_a_round()
    assert not schedule.doubled("slow")
    assert schedule.next("fast", 11) == "s2"
    assert schedule.doubled("fast") and schedule.doubled("slow")
    assert schedule.next("third", 11) is None  # two are enough
    assert schedule.complete("fast", 12) and schedule.finished
    assert not schedule.complete("slow", 20)


def test_what_will_soon_be_done_is_left_alone() -> None:
    schedule = tail_of_a_round()
    assert schedule.next("fast", 19.5) is None  # half a second is left of ten
    assert schedule.next("fast", 22) == "s2"  # two seconds late


def test_a_copy_that_is_lost_is_no_loss() -> None:
    schedule = tail_of_a_round()
    schedule.next("fast", 11)
    assert schedule.lost("slow") is None and not schedule.finished
    assert schedule.lost("fast") == "s2"
    assert schedule.next("slow", 12) == "s2"
    assert schedule.complete("slow", 13) and schedule.finished


@pytest.mark.parametrize("in_order", [True, False])
def test_a_late_first_item_is_doubled_before_new_ones_where_order_matters(in_order: bool) -> None:
    schedule = Schedule(list("abcdefgh"), attempts=2, in_order=in_order)
    schedule.next("w0", 0)
    for second in range(3):
        schedule.next("w1", second)
        schedule.complete("w1", second + 1)
    assert schedule.next("w1", 2.5 + 0.5) == ("a" if in_order else "e")


def simulate(workers: int, chunks: int, seed: int) -> tuple[float, float, int]:
    """A pool whose speeds differ fourfold, on a clock of its own. The least busy share of a worker while chunks waited,
    the time until all were done relative to that of work that could be cut at will, and the doubled chunks."""
    rng, schedule, now = random.Random(seed), Schedule(range(chunks), 3), 0.0
    pace = [1 + 3 * i / (workers - 1) for i in range(workers)]
    spans: list[tuple[int, float, float]] = []
    events: list[tuple[float, int]] = []
    free, started, waited = list(range(workers)), 0, 0.0
    while not schedule.finished:
        for worker in list(free):
            if schedule.next(worker, now) is not None:
                free.remove(worker)
                end = now + pace[worker] * rng.lognormvariate(0, 0.1)
                heapq.heappush(events, (end, worker))
                spans.append((worker, now, end))
                started += 1
                waited = now if started <= chunks else waited
        now, worker = heapq.heappop(events)
        schedule.complete(worker, now)
        free.append(worker)
    busy = [0.0] * workers
    for worker, start, end in spans:
        busy[worker] += max(0.0, min(end, waited) - start)
    return min(busy) / waited, now * sum(1 / p for p in pace) / chunks, started - chunks


def test_a_mixed_pool_of_64_is_busy_until_the_last_chunks() -> None:
    for seed in range(3):
        share, overhead, doubled = simulate(64, 1280, seed)
        assert share > 0.999
        assert overhead < 1.06 and doubled < 40
        assert simulate(64, 256, seed)[1] < 1.35  # four chunks each: the tail is a slow chunk's length, 4 of 8.6


def test_prompts_take_turns_over_rounds() -> None:
    rounds = [round_prompts(["a", "b", "c"], k, 4, together=False) for k in (1, 2, 3)]
    assert rounds == [["a", "b", "c", "a"], ["b", "c", "a", "b"], ["c", "a", "b", "c"]]


def test_particles_of_a_prompt_stand_side_by_side() -> None:
    assert round_prompts(["b", "a"], 1, 5, together=True) == ["b", "b", "b", "a", "a"]
    assert round_prompts(["b", "a"], 2, 5, together=True) == ["b", "b", "a", "a", "a"]
