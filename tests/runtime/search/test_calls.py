"""Calls in flight, with a clock of the test's own: what stands for a call here is a letter."""

from __future__ import annotations

from dav_ray.runtime.search.calls import Call, Calls


def flying(*calls: tuple[str, str, float]) -> Calls:
    """(reference, worker, when it was sent); the item is the reference in capitals."""
    found = Calls()
    for ref, worker, sent in calls:
        found.add(ref, Call(worker, ref.upper(), f"table of {ref}", sent))
    return found


def names(calls: list[Call]) -> list[str]:
    return [call.item for call in calls]


def test_a_call_is_waited_for_from_the_answer_before_it() -> None:
    """The worker could not start it earlier."""
    calls = flying(("a", "w", 0.0), ("x", "v", 0.0), ("b", "w", 1.0))
    assert calls.overdue(10.0, 10.0) == []
    assert calls.answered("a", 9.0).table == "table of a"
    assert calls.overdue(11.5, 10.0) == [calls.of("v")[0][1]]  # x
    assert names(calls.overdue(19.5, 10.0)) == ["X", "B"]
    assert "a" not in calls and list(calls) == ["x", "b"] and len(calls) == 2


def test_a_call_that_is_overtaken_has_its_time_again_and_only_once() -> None:
    """One that hangs may be overtaken by any number of others."""
    calls = flying(("a", "w", 0.0), ("b", "w", 0.0))
    calls.answered("b", 6.0)
    assert calls.overdue(15.0, 10.0) == []
    calls.add("c", Call("w", "C", None, 6.0))
    calls.answered("c", 12.0)
    assert names(calls.overdue(16.5, 10.0)) == ["A"]


def test_of_each_worker_the_first_call_is_late() -> None:
    calls = flying(("a", "w", 0.0), ("b", "w", 0.0), ("x", "v", 5.0))
    assert names(calls.overdue(12.0, 10.0)) == ["A"]
    assert names(calls.overdue(16.0, 10.0)) == ["A", "X"]


def test_all_calls_of_a_worker_go_with_it() -> None:
    calls = flying(("a", "w", 0.0), ("x", "v", 0.0), ("b", "w", 1.0))
    assert names(calls.drop("w")) == ["A", "B"]
    assert list(calls) == ["x"] and calls.workers == {"v"} and calls.of("w") == [] and calls.drop("w") == []


def test_calls_of_an_item_and_of_two_collections() -> None:
    calls, item = Calls(), object()
    for ref, worker, what in (("a", "w", item), ("b", "w", object()), ("x", "v", item)):
        calls.add(ref, Call(worker, what, None, 0.0))
    assert [ref for ref, _ in calls.at(item)] == ["a", "x"]
    both = flying(("y", "u", 0.0))
    both.take(calls)
    assert list(both) == ["y", "a", "b", "x"] and [ref for ref, _ in both.of("w")] == ["a", "b"]
