"""Who is served next and how many replicas there are, on a clock that the tests set."""

from __future__ import annotations

from typing import Any

import pytest

from dav_ray.config.sections.roles import RewardRole
from dav_ray.runtime.reward.batching import ANYWHERE, Queue, Request
from dav_ray.runtime.reward.scaling import BACK_OFF_S, GROW_AFTER_S, LINGER_S, Pool


def request(num: int = 1, alike: str = "a", since: float = 0.0) -> Request:
    return Request(num, alike, since)


def pool(now: float = 0.0, **role: Any) -> Pool:
    return Pool(RewardRole.model_validate(role), now)


def with_replicas(found: Pool, *names: str, now: float = 0.0) -> Pool:
    for name in names:
        found.start(name, now)
        found.stand(name, now)
        found.admit(name, now)
    return found


def numbers(requests: list[Request]) -> list[int]:
    return [one.num for one in requests]


# ---- the queue ----


def test_without_merge_each_call_takes_the_oldest_request_alone() -> None:
    queue = Queue(batch=10, merge=False)
    for num in (1, 2):
        queue.add(request(num))
    assert (numbers(queue.take()), numbers(queue.take()), len(queue)) == ([1], [2], 0)


def test_merged_requests_fill_a_batch_and_keep_their_order() -> None:
    queue = Queue(batch=8, merge=True)
    for num in (3, 4, 2, 1, 8):
        queue.add(request(num))
    assert numbers(queue.take()) == [3, 4, 1]  # 2 would be one too many
    assert numbers(queue.take()) == [2]
    assert numbers(queue.take()) == [8]


def test_a_request_beyond_the_batch_goes_alone() -> None:
    queue = Queue(batch=8, merge=True)
    for num in (20, 1):
        queue.add(request(num))
    assert numbers(queue.take()) == [20]


def test_without_a_batch_all_that_wait_and_are_alike_go_together() -> None:
    queue = Queue(batch=None, merge=True)
    for num, alike in ((1, "a"), (2, "b"), (3, "a"), (400, "a")):
        queue.add(request(num, alike))
    assert numbers(queue.take()) == [1, 3, 400]
    assert numbers(queue.take()) == [2]


def test_what_came_back_from_a_call_goes_alone() -> None:
    queue = Queue(None, merge=True)
    for num, stuck in ((1, 0), (2, 1), (3, 0)):
        one = request(num)
        one.stuck = stuck
        queue.add(one)
    assert numbers(queue.take()) == [1, 3] and numbers(queue.take()) == [2]
    again = [request(4), request(5)]
    again[0].lost = 1
    queue.put_back(again)
    assert numbers(queue.take()) == [4] and numbers(queue.take()) == [5]


def test_what_is_put_back_comes_first_in_its_order() -> None:
    queue = Queue(batch=None, merge=False)
    lost = [request(1, since=5.0), request(2, since=6.0)]
    queue.add(request(3, since=7.0))
    queue.put_back(lost)
    assert queue.oldest() == 5.0
    assert [queue.take()[0].num for _ in range(3)] == [1, 2, 3]
    assert queue.oldest() is None


def test_what_was_refused_waits_its_time_and_lets_others_pass() -> None:
    queue = Queue(batch=10, merge=False)
    refused, later = request(1), request(2, since=1.0)
    refused.not_before = 5.0
    queue.add(refused)
    queue.add(later)
    assert (queue.ready(4.0), queue.oldest(4.0)) == (1, 1.0)
    assert queue.take(4.0) == [later]
    assert (queue.ready(4.9), queue.oldest(4.9), len(queue)) == (0, None, 1)
    assert queue.take(5.0) == [refused]


def test_nobody_is_called_or_started_for_what_waits_its_time() -> None:
    found = with_replicas(pool(replicas=2, min_replicas=1), "x")
    refused = request()
    refused.not_before = 9.0
    found.again([refused])
    assert found.assign(8.0) == [] and found.to_start(8.0) == 0
    assert found.to_end(8.0 + 10 * LINGER_S) == []  # it is wanted again
    assert found.assign(9.0) == [("x", [refused])]


def test_a_request_that_nobody_waits_for_is_forgotten() -> None:
    queue = Queue(batch=10, merge=False)
    for num in (1, 2, 3):
        queue.add(request(num))
    queue.forget(lambda one: one.num == 2)
    assert [queue.take()[0].num for _ in range(2)] == [1, 3] and len(queue) == 0


# ---- calls ----


def test_a_free_replica_gets_the_next_request_and_a_busy_one_none() -> None:
    found = with_replicas(pool(replicas=1), "x")
    first, second = request(1), request(2)
    found.arrive(first)
    found.arrive(second)
    assert found.assign(1.0) == [("x", [first])]
    assert found.assign(2.0) == []
    found.finish("x", 3.0)
    assert found.assign(3.0) == [("x", [second])]


def test_the_replica_that_was_busy_last_is_asked_first() -> None:
    found = with_replicas(pool(replicas=2), "x", "y")
    for now in (1.0, 2.0, 3.0):
        found.arrive(request())
        ((name, _),) = found.assign(now)
        found.finish(name, now + 0.5)
        assert name == "y"


def test_what_a_lost_replica_had_goes_to_another_one() -> None:
    found = with_replicas(pool(replicas=2), "x", "y")
    mine, later = request(1), request(2)
    found.arrive(mine)
    ((name, _),) = found.assign(0.0)
    found.arrive(later)
    found.again(found.drop(name, 1.0))
    ((other, got),) = found.assign(1.0)
    assert (got, {name, other}) == ([mine], {"x", "y"})
    assert found.drop(name, 1.0) == ()  # it is gone already


def test_requests_without_a_replica_are_overdue_after_the_time_that_one_may_take_to_start() -> None:
    found = pool(replicas=1, start_timeout_s=10.0)
    early, late = request(since=0.0), request(since=5.0)
    found.start("x", 0.0)
    found.arrive(early)
    found.arrive(late)
    assert found.overdue(10.0) == [] and found.late(10.0) == []
    assert found.overdue(10.5) == [early]
    assert found.late(10.5) == ["x"] and found.late(11.0) == []  # named once
    assert found.overdue(15.5) == [late]


def test_a_long_call_does_not_count_as_a_wait_for_a_replica() -> None:
    found = with_replicas(pool(replicas=1, start_timeout_s=10.0), "x")
    mine = request(since=0.0)
    found.arrive(mine)
    found.assign(0.0)
    assert found.overdue(100.0) == []
    found.again(found.drop("x", 100.0))
    assert found.overdue(105.0) == []
    assert found.overdue(110.5) == [mine]


# ---- a request over several replicas ----


def parts(found: Pool, now: float = 1.0) -> list[tuple[int, int]]:
    """Of the calls that are made now: (first sample, samples), in order."""
    return sorted((one.start, one.num) for _, requests in found.assign(now) for one in requests)


def test_free_replicas_share_a_request_cut_after_whole_batches() -> None:
    found = with_replicas(pool(replicas=4, batch=16), "w", "x", "y", "z")
    found.arrive(request(128))
    assert parts(found) == [(0, 32), (32, 32), (64, 32), (96, 32)]


@pytest.mark.parametrize(
    "replicas, num, expected",
    [
        (3, 128, [(0, 48), (48, 48), (96, 32)]),
        (4, 40, [(0, 16), (16, 16), (32, 8)]),  # no more parts than batches
        (4, 17, [(0, 16), (16, 1)]),
        (4, 16, [(0, 16)]),
        (1, 128, [(0, 128)]),
    ],
)
def test_parts_are_as_equal_as_batches_allow(replicas: int, num: int, expected: list[tuple[int, int]]) -> None:
    names = ["w", "x", "y", "z"][:replicas]
    found = with_replicas(pool(replicas=replicas, batch=16), *names)
    found.arrive(request(num))
    assert parts(found) == expected and not found.queue


def test_calls_of_the_reward_are_those_of_the_whole_request() -> None:
    """The same batches, so that values have the same bits however many replicas are free."""

    def batches(names: list[str]) -> list[tuple[int, int]]:
        found = with_replicas(pool(replicas=7, batch=6), *names)
        found.arrive(request(100))
        return [(at, min(at + 6, start + num)) for start, num in parts(found) for at in range(start, start + num, 6)]

    whole = batches(["a"])
    assert all(batches([str(i) for i in range(n)]) == whole for n in range(2, 8))


def test_requests_that_wait_get_their_share_first() -> None:
    found = with_replicas(pool(replicas=4, batch=1), "w", "x", "y", "z")
    for num in (4, 6):
        found.arrive(request(num))
    assert parts(found) == [(0, 2), (0, 3), (2, 2), (3, 3)]
    crowded = with_replicas(pool(replicas=2, batch=1), "x", "y")
    for num in (4, 6, 8):
        crowded.arrive(request(num))
    assert parts(crowded) == [(0, 4), (0, 6)]


def test_without_a_batch_nothing_is_cut_unless_the_reward_allows_it_anywhere() -> None:
    found = with_replicas(pool(replicas=2), "x", "y")
    found.arrive(request(128))
    assert parts(found) == [(0, 128)]
    anywhere = with_replicas(pool(replicas=2), "x", "y")
    anywhere.queue.unit = ANYWHERE
    anywhere.arrive(request(100))
    anywhere.arrive(request(7))
    assert parts(anywhere) == [(0, 7), (0, 100)]
    for name in ("x", "y"):
        anywhere.finish(name, 2.0)
    anywhere.arrive(request(100))
    assert parts(anywhere, 2.0) == [(0, 56), (56, 44)]


def test_a_part_that_its_replica_lost_goes_to_another_one() -> None:
    found = with_replicas(pool(replicas=2, batch=2), "x", "y")
    found.arrive(request(8))
    first, second = found.assign(1.0)
    found.again(found.drop(first[0], 2.0))
    found.finish(second[0], 3.0)
    ((name, (again,)),) = found.assign(3.0)
    assert (name, again.start, again.num) == (second[0], 0, 4)


# ---- how many replicas ----


def test_the_least_replicas_are_started_at_once() -> None:
    assert pool(replicas=5, min_replicas=2).to_start(0.0) == 2
    assert pool(replicas=3).to_start(0.0) == 3


def test_another_replica_is_started_while_requests_wait_one_at_a_time() -> None:
    found = with_replicas(pool(replicas=3, min_replicas=1), "x")
    found.arrive(request(since=0.0))
    found.assign(0.0)
    found.arrive(request(since=0.0))
    assert found.to_start(GROW_AFTER_S) == 0
    assert found.to_start(GROW_AFTER_S + 0.1) == 1
    found.start("y", 2.0)
    assert found.to_start(3.0) == 0  # one is starting
    found.stand("y", 4.0)
    assert found.to_start(4.0) == 0  # and about to be admitted
    found.admit("y", 4.0)
    assert found.to_start(4.0) == 1
    with_replicas(found, "z", now=5.0)
    assert found.to_start(9.0) == 0  # no more than `replicas`


def test_replicas_beyond_the_least_end_without_work_the_idlest_first() -> None:
    found = with_replicas(pool(replicas=3, min_replicas=2), "x", "y", "z")
    found.arrive(request())
    ((busy, _),) = found.assign(1.0)
    idlest = [name for name in ("x", "y", "z") if name != busy][0]
    assert found.to_end(LINGER_S - 0.1) == []
    assert found.to_end(LINGER_S + 0.1) == [idlest]
    found.drop(idlest, LINGER_S + 0.1)
    assert found.to_end(10 * LINGER_S) == []
    assert found.to_start(10 * LINGER_S) == 0


def test_all_replicas_are_released_when_idle_and_come_back_with_a_request() -> None:
    found = with_replicas(pool(replicas=2, idle_s=5.0), "x", "y")
    found.arrive(request())
    ((name, _),) = found.assign(1.0)
    assert found.to_end(20.0) == []  # one of them works
    found.finish(name, 20.0)
    assert found.to_end(24.9) == []
    assert sorted(found.to_end(25.0)) == ["x", "y"]
    for gone in ("x", "y"):
        found.again(found.drop(gone, 25.0))
    assert found.to_start(100.0) == 0
    found.arrive(request(since=100.0))
    assert found.to_start(100.0) == 2


def test_a_replica_that_is_still_starting_is_not_idle() -> None:
    found = pool(replicas=1, idle_s=0.0)
    found.start("x", 0.0)
    assert found.to_end(50.0) == []
    found.stand("x", 60.0)
    assert found.to_end(60.0) == ["x"]


def test_a_refused_replica_is_not_replaced() -> None:
    found = with_replicas(pool(replicas=2), "x", "y")
    found.refuse("x", 1.0)
    assert (found.to_start(1.0), found.hopeless) == (0, False)
    found.drop("y", 2.0)
    assert found.to_start(2.0) == 1
    found.start("z", 2.0)
    found.refuse("z", 3.0)
    assert found.hopeless


def test_replicas_that_fail_as_they_start_are_tried_again_less_and_less_often() -> None:
    found, now, pauses = pool(replicas=1), 0.0, []
    for _ in range(9):
        found.start("x", now)
        found.fail("x", now)
        pause = next(s for s in range(100) if found.to_start(now + s))
        pauses.append(pause)
        now += pause
    assert pauses == [1, 2, 4, 8, 16, 32, BACK_OFF_S, BACK_OFF_S, BACK_OFF_S]
    found.start("x", now)
    found.stand("x", now)
    assert found.failures == 0


def test_busy_and_admitted_seconds_add_up_over_replicas() -> None:
    found = with_replicas(pool(replicas=2), "x", now=2.0)
    with_replicas(found, "y", now=4.0)
    found.arrive(request())
    ((name, _),) = found.assign(5.0)
    found.finish(name, 8.0)
    found.drop("x", 9.0)
    busy_s, admitted_s = found.seconds(10.0)
    assert busy_s == pytest.approx(3.0)
    assert admitted_s == pytest.approx((9 - 2) + (10 - 4))
