"""What a fleet does about a reward that wants less memory, another process or another try, on real Ray actors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dav_ray.errors import RunError
from tests.support.deadlines import until
from tests.support.fleets import WAIT_S, Run, fleet_in, samples


@pytest.fixture
def run(shared_ray: None, tmp_path: Path) -> Iterator[Run]:
    with fleet_in(tmp_path) as found:
        yield found


def with_golden(run: Run, reward: dict[str, Any], **role: Any) -> Run:
    run.start({**reward, "args": {"folder": str(run.folder), **reward["args"]}}, **role)
    run.ask(samples(0.0))
    until(lambda: run.events("golden_stored"), "no golden scores", WAIT_S)
    return run


def test_a_reward_that_runs_out_of_memory_goes_on_with_half(run: Run) -> None:
    with_golden(run, {"kind": "Small", "args": {"room": 3}})
    (scored,) = run.ask(samples(*range(13)), grad=True)
    assert scored.error is None and scored.values is not None and scored.grads is not None
    assert scored.values.tolist() == list(range(13)) and (scored.grads == 1).all() and len(scored.grads) == 13
    assert run.calls()[2:] == [13, 6, 3, 3, 3, 3, 1]
    told = [(event["reward"], event["replica"], event["batch"]) for event in run.events("out_of_memory")]
    assert told == [("Small", "reward-0-0", 6), ("Small", "reward-0-0", 3)]
    assert run.totals(samples(*range(6))) == list(range(6))
    assert run.calls()[-2:] == [3, 3] and len(run.events("out_of_memory")) == 2  # it remembers


def test_a_device_that_fails_costs_the_replica_and_nothing_else(run: Run) -> None:
    with_golden(run, {"kind": "Lost", "args": {"times": 1}})
    assert run.totals(samples(5.0, -1.0)) == [5.0, -1.0]
    (event,) = run.events("replica_replaced")
    assert (event["reward"], event["replica"]) == ("Lost", "reward-0-0")
    assert event["cause"].startswith("AcceleratorError: CUDA error: an illegal memory access")
    assert run.events("replica_lost") == run.events("replica_refused") == []


@pytest.mark.slow
def test_a_device_that_fails_wherever_it_is_asked_is_the_answer(run: Run) -> None:
    with_golden(run, {"kind": "Lost", "args": {"times": 99}})
    (scored,) = run.ask(samples(-1.0))
    assert scored.error is not None and scored.error.startswith("AcceleratorError: CUDA error")
    assert len(run.events("replica_replaced")) == 3 and "AcceleratorError" in (scored.trace or "")
    assert run.totals(samples(2.0)) == [2.0]


@pytest.mark.parametrize("grad", [False, True])
def test_a_service_that_is_busy_is_asked_again_for_what_is_missing(run: Run, grad: bool) -> None:
    with_golden(run, {"kind": "Busy", "args": {"since": 4.0, "times": 2}}, batch=2)
    before = len(run.calls())
    (scored,) = run.ask(samples(*range(7)), grad)
    assert scored.error is None and scored.values is not None and scored.values.tolist() == list(range(7))
    if grad:
        assert scored.grads is not None and scored.grads.shape == (7, 2) and (scored.grads == 1).all()
    assert run.calls()[before:] == [2, 2, 2, 2, 2, 1]  # 0 1, 2 3, 4 5 refused twice, 6
    told = [(event["reward"], event["tries"], event["cause"]) for event in run.events("reward_retried")]
    assert told == [("Busy", tries, "ConnectionResetError: the service restarts") for tries in (1, 2)]


@pytest.mark.thorough
def test_a_service_that_stays_busy_ends_the_run_and_names_the_key(run: Run) -> None:
    with_golden(run, {"kind": "Busy", "args": {"since": 4.0, "times": 99}}, retry_s=2.5)
    words = r"Busy: no answer in 2.5 s of asking again \(roles.reward.retry_s\): ConnectionResetError: the service"
    with pytest.raises(RunError, match=words) as caught:
        run.ask(samples(5.0))
    assert type(caught.value) is RunError  # not the data's fault
    assert 1 <= len(run.events("reward_retried")) <= 3
    assert run.totals(samples(2.0)) == [2.0]


def test_a_replica_whose_service_is_busy_at_the_golden_scores_is_asked_again(run: Run) -> None:
    with_golden(run, {"kind": "Late", "args": {}}, replicas=2)
    until(lambda: run.state().admitted == 2, "not admitted", WAIT_S)
    (event,) = run.events("reward_retried")
    assert event["cause"] == "TimeoutError: it loads its weights"
    assert run.events("replica_refused") == run.events("replica_replaced") == []
