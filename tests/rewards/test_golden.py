"""Golden scores: what is kept, and what counts as reproduced."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest

from dav_ray.rewards.golden import (
    ROWS,
    Golden,
    decode,
    difference,
    encode,
    first_rows,
    golden_path,
    tolerance_on,
    usable,
)

INF, NAN = math.inf, math.nan


def golden(*values: float) -> Golden:
    samples = np.arange(3.0 * len(values), dtype=np.float32).reshape(len(values), 3)
    return Golden(samples, tuple(f"prompt {i}" for i in range(len(values))), np.array(values), grad=False)


def test_a_file_gives_back_what_was_written() -> None:
    kept = Golden(np.array([[1, 2]], np.int64), ("prompt, with ü",), np.array([-INF]), grad=True)
    found = decode(encode(kept))
    assert found.samples.dtype == np.int64 and found.samples.tolist() == [[1, 2]]
    assert (found.conditions, found.values.tolist(), found.grad) == (kept.conditions, [-INF], True)


@pytest.mark.parametrize("values", [[NAN], [INF], [1.0, 2.0]])
def test_a_file_of_other_scores_is_refused(values: list[float]) -> None:
    broken = Golden(np.zeros((1, 2)), ("a",), np.array(values), grad=False)
    with pytest.raises(ValueError, match="1 samples, 1 conditions"):
        decode(encode(broken))


def test_what_is_no_archive_of_golden_scores_is_refused() -> None:
    other = io.BytesIO()
    np.savez(other, weights=np.zeros(3))
    pickled = io.BytesIO()
    np.savez(pickled, samples=np.array([{}], dtype=object), conditions=["a"], values=[1.0], grad=False)
    for data in (b"", b"text", other.getvalue(), pickled.getvalue()):
        with pytest.raises(ValueError):
            decode(data)


def test_only_finite_scores_and_minus_infinity_may_be_golden() -> None:
    assert usable(np.array([1.0, -INF]), 2)
    for values in (None, np.array([1.0]), np.array([[1.0, 2.0]]), np.array([NAN, 1.0]), np.array([INF, 1.0])):
        assert not usable(values, 2)


def test_the_tolerance_is_relative_above_one_and_absolute_below() -> None:
    assert difference(golden(0.5, -200.0), np.array([0.509, -201.9]), 0.01) is None
    assert difference(golden(0.5, -200.0), np.array([0.511, -201.9]), 0.01) == (0, 0.511, 0.5)
    assert difference(golden(0.5, -200.0), np.array([0.509, -202.1]), 0.01) == (1, -202.1, -200.0)


def test_the_worst_sample_is_named() -> None:
    assert difference(golden(1.0, 1.0, 1.0), np.array([1.2, 1.5, 1.3]), 0.1) == (1, 1.5, 1.0)


@pytest.mark.parametrize("score, same", [(-INF, True), (-1e300, False), (NAN, False), (INF, False)])
def test_minus_infinity_has_to_be_met(score: float, same: bool) -> None:
    assert (difference(golden(1.0, -INF), np.array([1.0, score]), 1.0) is None) == same
    assert difference(golden(1.0, 2.0), np.array([1.0, -INF]), 1.0) == (1, -INF, 2.0)


def test_no_scores_or_too_few_are_no_reproduction() -> None:
    for values in (None, np.array([1.0])):
        found = difference(golden(1.0, 2.0), values, 10.0)
        assert found is not None and math.isnan(found[1])


def test_the_tolerance_goes_by_hardware() -> None:
    tolerance = {"default": 1e-3, "A100": 1e-2}
    assert [tolerance_on(kind, tolerance) for kind in ("A100", "L4", "cpu")] == [1e-2, 1e-3, 1e-3]


def test_a_few_rows_are_kept_as_a_copy() -> None:
    samples = np.arange(40.0).reshape(20, 2)
    rows, conditions = first_rows(samples, [str(i) for i in range(20)])
    samples[:] = 0
    assert rows.shape == (ROWS, 2) and rows[-1].tolist() == [14.0, 15.0] and conditions[-1] == "7"


def test_a_label_can_not_leave_the_folder() -> None:
    assert golden_path("../a b") == "golden/..%2Fa b.npz"
