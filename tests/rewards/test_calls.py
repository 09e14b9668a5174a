"""Calls of a reward: in batches, with less at once where memory does not suffice, and again where it is busy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from dav_ray.errors import RewardError, RunError, Transient
from dav_ray.rewards.base import Calls, Scored, check

ROWS = np.arange(13, dtype=np.float32).reshape(13, 1)
TEXTS = [str(i) for i in range(13)]


class Counting:
    """The total of each sample; fails as `fault(samples)` says, which sees how many calls there were."""

    differentiable = True

    def __init__(self, fault: Callable[[Tensor, int], None] = lambda samples, call: None) -> None:
        self.sizes: list[int] = []
        self._fault = fault

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        assert [int(row[0]) for row in samples] == [int(text) for text in conditions]
        self.sizes.append(len(samples))
        self._fault(samples, len(self.sizes))
        return samples.double().flatten(1).sum(1) ** 2


def too_many(most: int, error: type[Exception] = torch.OutOfMemoryError) -> Callable[[Tensor, int], None]:
    def fault(samples: Tensor, call: int) -> None:
        if len(samples) > most:
            raise error("CUDA out of memory. Tried to allocate 20.00 MiB")

    return fault


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
def test_memory_that_does_not_suffice_halves_the_batch_and_values_stay(grad: bool, error: type[Exception]) -> None:
    whole = Calls(Counting())(ROWS, TEXTS, grad)
    reward = Counting(too_many(3, error))
    calls = Calls(reward, 12)
    found = calls(ROWS, TEXTS, grad)
    assert found.error is None and found.values is not None and whole.values is not None
    assert found.values.tolist() == whole.values.tolist()
    if grad:
        assert found.grads is not None and whole.grads is not None
        assert np.array_equal(found.grads, whole.grads)
    assert reward.sizes == [12, 6, 3, 3, 3, 3, 1]
    assert [(name, fields["batch"]) for name, fields in calls.events()] == [("out_of_memory", 6), ("out_of_memory", 3)]
    assert calls.events() == []
    reward.sizes.clear()
    calls(ROWS, TEXTS, grad)
    assert reward.sizes == [3, 3, 3, 3, 1]  # it remembers


def test_one_sample_that_does_not_fit_is_a_fault_of_memory() -> None:
    found = Calls(Counting(too_many(0)))(ROWS, TEXTS, False)
    assert found.fault == "memory" and found.error is not None and found.values is None


def test_the_numbers_before_a_fault_are_kept() -> None:
    def fault(samples: Tensor, call: int) -> None:
        if call == 3:
            raise ConnectionResetError("peer")

    found = Calls(Counting(fault), 5)(ROWS, TEXTS, True)
    assert found.values is not None and found.grads is not None
    assert (found.fault, found.error) == ("transient", "ConnectionResetError: peer")
    assert found.values.tolist() == [float(i**2) for i in range(10)] and found.grads.shape == (10, 1)


def test_an_error_of_its_own_leaves_no_numbers() -> None:
    def fault(samples: Tensor, call: int) -> None:
        if call == 2:
            raise ValueError("no")

    found = Calls(Counting(fault), 5)(ROWS, TEXTS, False)
    assert (found.fault, found.error, found.values) == (None, "ValueError: no", None)


def test_a_limit_of_one_call_is_not_remembered() -> None:
    reward = Counting()
    calls = Calls(reward, 8)
    calls(ROWS, TEXTS, False, most=5)
    calls(ROWS, TEXTS, False)
    assert reward.sizes == [5, 5, 3, 8, 5]


def test_in_process_a_call_is_made_again_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("dav_ray.rewards.base.time.sleep", slept.append)

    def busy(samples: Tensor, call: int) -> None:
        if call in (2, 3):
            raise Transient("busy", retry_after_s=2.0)

    reward = Counting(busy)
    calls = Calls(reward, 7, retry_s=60.0)
    found = calls(ROWS, TEXTS, False)
    assert found.values is not None and found.values.tolist() == [float(i**2) for i in range(13)]
    assert reward.sizes == [7, 6, 6, 6] and len(slept) == 2 and min(slept) >= 2.0
    assert [(name, fields["tries"]) for name, fields in calls.events()] == [
        ("reward_retried", 1),
        ("reward_retried", 2),
    ]


def test_without_an_answer_in_the_budget_it_is_no_fault_of_the_data() -> None:
    def busy(samples: Tensor, call: int) -> None:
        raise Transient("busy", retry_after_s=99.0)

    found = Calls(Counting(busy), retry_s=5.0)(ROWS, TEXTS, False)
    with pytest.raises(RunError, match=r"judge: asked again in vain \(roles.reward.retry_s\): Transient: busy") as no:
        check(found, 13, reward="judge", chunk="c")
    assert not isinstance(no.value, RewardError) and "Transient" in (no.value.trace or "")


def test_no_samples_are_one_call() -> None:
    empty: Scored = Calls(Counting(), 4)(ROWS[:0], [], False)
    assert empty.values is not None and empty.values.shape == (0,)
