"""The parts of a request become one answer; what met a fault is asked again, alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dav_ray.errors import RunError
from dav_ray.rewards.base import Scored
from dav_ray.runtime.reward.answers import BREAKS, Answers, Asked, breakage, most
from dav_ray.runtime.reward.batching import Request

TEXTS = ["a", "b", "c", "d", "e", "f"]
ERROR = {"error": "ConnectionError: peer", "trace": "where"}


def scored(*values: float) -> Scored:
    return Scored(np.array(values))


def in_loop(work: Callable[[], Any]) -> Any:
    """What `work` returns, called where an event loop is."""

    async def run() -> Any:
        return work()

    return asyncio.run(run())


def asked(grad: bool = False, rows: tuple[int, ...] = (6,)) -> Asked:
    return Asked([(f"piece {i}", num) for i, num in enumerate(rows)], TEXTS, grad)


def request(of: Asked, start: int = 0, num: int = 6) -> Request:
    return Request(num, "a", 0.0, of, start)


def answers(told: list[Any], retry_s: float = 100.0) -> Answers:
    return Answers("judge", retry_s, lambda event, **fields: told.append((event, fields)))


def test_spans_are_of_the_pieces_that_hold_them() -> None:
    def spans() -> list[Any]:
        of = asked(rows=(2, 3, 1))
        return [of.spans(0, 6), of.spans(1, 2), of.spans(5, 1), of.conditions(1, 2)]

    whole, middle, last, texts = in_loop(spans)
    assert whole == [("piece 0", 0, 2), ("piece 1", 0, 3), ("piece 2", 0, 1)]
    assert middle == [("piece 0", 1, 2), ("piece 1", 0, 1)] and last == [("piece 2", 0, 1)]
    assert texts == ["b", "c"]


@pytest.mark.parametrize("grad", [False, True])
def test_parts_are_joined_in_order(grad: bool) -> None:
    def work() -> Any:
        of = asked(grad)
        of.add(4, 2, scored(4, 5), "last")
        of.add(0, 1, scored(0), "first")
        assert not of.over
        of.add(1, 3, scored(1, 2, 3), "middle")
        return of.answer.result()

    found = in_loop(work)
    values = found[0].values if grad else found.values
    assert values.tolist() == [0, 1, 2, 3, 4, 5]
    assert not grad or found[1] == ["first", "middle", "last"]


def test_an_error_in_a_part_is_the_answer() -> None:
    def work() -> Any:
        of = asked()
        of.add(0, 3, scored(0, 1, 2), None)
        of.add(3, 3, Scored(error="ValueError: no"), None)
        return of.answer.result()

    assert in_loop(work).error == "ValueError: no"


def test_a_wrong_shape_of_a_part_is_an_error_and_of_the_whole_it_is_passed_on() -> None:
    def work() -> Any:
        part, whole = asked(), asked()
        part.add(0, 3, scored(0, 1), None)
        whole.add(0, 6, scored(0, 1), None)
        return part.answer.result(), whole.answer.result()

    part, whole = in_loop(work)
    assert part.error == "shape [2] where [3] is needed" and whole.values.tolist() == [0, 1]


def test_what_was_scored_before_the_fault_is_kept() -> None:
    told: list[Any] = []

    def work() -> Any:
        of = asked()
        first = request(of)
        (rest,) = answers(told).settle("x", first, Scored(np.array([0.0, 1.0]), fault="transient", **ERROR), None)
        assert (rest.start, rest.num, rest.done, first.done) == (2, 4, False, True)
        assert rest.not_before > 0
        assert answers(told).settle("x", rest, scored(2, 3, 4, 5), None) == []
        return of.answer.result()

    assert in_loop(work).values.tolist() == [0, 1, 2, 3, 4, 5]
    ((event, fields),) = told
    assert (event, fields["replica"], fields["tries"]) == ("reward_retried", "x", 1)


def test_who_got_on_has_its_whole_budget_again() -> None:
    def work() -> list[int]:
        of, tries = asked(), []
        rest = request(of)
        for values in ([], [0.0], [], []):
            fault = Scored(np.array(values) if values else None, fault="transient", **ERROR)
            (rest,) = answers([]).settle("x", rest, fault, None)
            assert rest.patience is not None
            tries.append(rest.patience.tries)
        return tries

    assert in_loop(work) == [1, 1, 2, 3]


def test_without_an_answer_in_the_budget_it_fails_and_names_the_key() -> None:
    def work() -> Any:
        of = asked()
        assert answers([], 0.0).settle("x", request(of), Scored(fault="transient", **ERROR), None) == []
        return of.answer.exception()

    failure = in_loop(work)
    assert type(failure) is RunError and failure.trace == "where"
    assert str(failure) == (
        "reward: judge: no answer in 0 s of asking again (roles.reward.retry_s): ConnectionError: peer"
    )


@pytest.mark.parametrize("fault", ["device", "memory"])
def test_other_replicas_are_asked_and_in_the_end_the_error_is_the_answer(fault: Any) -> None:
    def work() -> tuple[int, Any]:
        of, times = asked(), 0
        open_ = [request(of)]
        while open_:
            times += 1
            open_ = answers([]).settle("x", open_[0], Scored(fault=fault, **ERROR), None)
        return times, of.answer.result()

    times, found = in_loop(work)
    assert times == BREAKS
    assert (found.error, found.trace, found.fault) == (ERROR["error"], "where", None)  # evidence is kept of it


def test_lost_samples_are_asked_for_anew() -> None:
    def work() -> Any:
        of = asked()
        assert answers([]).settle("x", request(of, 0, 3), None, None) == []
        return of.answer.result()

    assert in_loop(work) is None


def test_which_answers_cost_the_replica() -> None:
    assert breakage([None, scored(1), Scored(fault="transient", **ERROR), Scored(error="no")]) is None
    assert breakage([scored(1), Scored(fault="device", **ERROR)]) == ERROR["error"]


def test_replicas_that_were_ended_for_memory_halve_the_calls() -> None:
    first, second = Request(9, "a", 0.0), Request(4, "a", 0.0)
    assert most([first]) is None
    first.halvings = 2
    assert most([first]) == 3 and most([first, second]) == 4
