"""Pull scheduling, without clocks or workers."""

from __future__ import annotations

import pytest

from dav_ray.schedule import Exhausted, Schedule, round_prompts


def test_items_are_pulled_in_order_by_whoever_is_free() -> None:
    schedule = Schedule(["a", "b", "c"], attempts=1)

    assert [schedule.next("fast"), schedule.next("slow")] == ["a", "b"]
    schedule.complete("fast")
    assert schedule.next("fast") == "c"
    schedule.complete("fast")
    assert schedule.next("fast") is None
    assert (schedule.done, schedule.finished) == (2, False)
    schedule.complete("slow")
    assert (schedule.done, schedule.finished) == (3, True)


def test_a_lost_item_goes_out_again_before_new_ones() -> None:
    schedule = Schedule(["a", "b", "c", "d"], attempts=2)
    for worker in ("w0", "w1", "w2"):
        schedule.next(worker)

    assert schedule.lost("w2") == "c"
    assert schedule.lost("w1") == "b"
    assert [schedule.next(w) for w in ("w1", "w2", "w3", "w4")] == ["b", "c", "d", None]


def test_an_item_that_is_lost_too_often_ends_it() -> None:
    schedule = Schedule(["a", "b"], attempts=2)
    schedule.next("w0")
    schedule.next("w1")
    schedule.lost("w0")
    assert schedule.next("w0") == "a"
    with pytest.raises(Exhausted, match="lost 2 times"):
        schedule.lost("w0")


def test_attempts_are_counted_per_item() -> None:
    schedule = Schedule(["a", "b"], attempts=2)
    for _ in range(2):
        schedule.next("w0")
        if schedule.done == 0:
            schedule.lost("w0")
            schedule.next("w0")
            schedule.complete("w0")
        else:
            assert schedule.lost("w0") == "b"


def test_a_busy_worker_gets_nothing() -> None:
    schedule = Schedule(["a", "b"], attempts=1)
    schedule.next("w0")
    with pytest.raises(ValueError, match="worker w0 is busy"):
        schedule.next("w0")


def test_nothing_to_do_is_finished() -> None:
    schedule: Schedule[str] = Schedule([], attempts=1)

    assert schedule.finished
    assert schedule.next("w0") is None


def test_prompts_take_turns_over_rounds() -> None:
    rounds = [round_prompts(["a", "b", "c"], k, 4, together=False) for k in (1, 2, 3)]
    assert rounds == [["a", "b", "c", "a"], ["b", "c", "a", "b"], ["c", "a", "b", "c"]]


def test_particles_of_a_prompt_stand_side_by_side() -> None:
    assert round_prompts(["b", "a"], 1, 5, together=True) == ["b", "b", "b", "a", "a"]
    assert round_prompts(["b", "a"], 2, 5, together=True) == ["b", "b", "a", "a", "a"]
