"""Golden scores: what is kept, and what counts as reproduced."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch

from dav_ray.rewards.golden import (
    ROWS,
    Golden,
    allowed,
    coarsest,
    decode,
    deviation,
    difference,
    encode,
    golden_path,
    precision_of,
    some_rows,
    spread,
    tolerance_on,
    usable,
)

INF, NAN = math.inf, math.nan


def golden(*values: float) -> Golden:
    samples = np.arange(3.0 * len(values), dtype=np.float32).reshape(len(values), 3)
    return Golden(samples, tuple(f"prompt {i}" for i in range(len(values))), np.array(values), grad=False)


def missed(
    kept: Golden, values: np.ndarray | None, tolerance: float | None, precision: str = "float32"
) -> tuple[int, float, float] | None:
    return difference(kept, values, allowed(kept, tolerance, precision))


def test_a_file_gives_back_what_was_written() -> None:
    kept = Golden(np.array([[1, 2]], np.int64), ("prompt, with ü",), np.array([-INF]), grad=True, precision="bfloat16")
    found = decode(encode(kept))
    assert found.samples.dtype == np.int64 and found.samples.tolist() == [[1, 2]]
    assert (found.conditions, found.values.tolist(), found.grad) == (kept.conditions, [-INF], True)
    assert found.precision == "bfloat16"


def test_a_file_of_an_earlier_release_says_nothing_of_the_precision() -> None:
    file = io.BytesIO()
    np.savez(file, samples=np.zeros((1, 2)), conditions=np.array(["a"]), values=np.array([1.0]), grad=np.array(False))
    assert decode(file.getvalue()).precision == "float64"  # the replica's own counts


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
    assert missed(golden(0.5, -200.0), np.array([0.509, -201.9]), 0.01) is None
    assert missed(golden(0.5, -200.0), np.array([0.511, -201.9]), 0.01) == (0, 0.511, 0.5)
    assert missed(golden(0.5, -200.0), np.array([0.509, -202.1]), 0.01) == (1, -202.1, -200.0)


def test_the_worst_sample_is_named() -> None:
    assert missed(golden(1.0, 1.0, 1.0), np.array([1.2, 1.5, 1.3]), 0.1) == (1, 1.5, 1.0)


@pytest.mark.parametrize("score, same", [(-INF, True), (-1e300, False), (NAN, False), (INF, False)])
def test_minus_infinity_has_to_be_met(score: float, same: bool) -> None:
    assert (missed(golden(1.0, -INF), np.array([1.0, score]), 1.0) is None) == same
    assert missed(golden(1.0, 2.0), np.array([1.0, -INF]), 1.0) == (1, -INF, 2.0)


def test_no_scores_or_too_few_are_no_reproduction() -> None:
    for values in (None, np.array([1.0])):
        found = missed(golden(1.0, 2.0), values, 10.0)
        assert found is not None and math.isnan(found[1])


def test_the_tolerance_goes_by_hardware() -> None:
    tolerance = {"default": 1e-3, "A100": 1e-2}
    assert [tolerance_on(kind, tolerance) for kind in ("A100", "L4", "cpu")] == [1e-2, 1e-3, 1e-3]
    assert [tolerance_on(kind, {"A100": 1e-2}) for kind in ("A100", "cpu")] == [1e-2, None]


# rewards as they are, their scores on different kinds of GPU: scores, differences, type of number
CLIP = [0.31, 0.27, 0.25, 0.33, 0.29, 0.22, 0.30, 0.26], 2.1e-3, "bfloat16"
AESTHETIC = [5.4, 5.9, 5.1, 6.0, 5.6, 4.8, 5.3, 5.7], 3.0e-2, "bfloat16"
PREFERENCE = [0.4, -1.2, 0.9, 1.3, -0.1, 0.2, -0.8, 0.6], 1.1e-2, "float16"
VLM = [2.1, -0.4, 3.3, 0.6, 1.8, -1.1, 0.2, 2.7], 3.0e-2, "bfloat16"


@pytest.mark.parametrize("scores, gap, precision", [CLIP, AESTHETIC, PREFERENCE, VLM])
def test_another_kind_of_gpu_is_let_through_and_other_weights_are_not(
    scores: list[float], gap: float, precision: str
) -> None:
    kept, signs = golden(*scores), np.array([1, -1, 1, -1, -1, 1, -1, 1])
    assert missed(kept, kept.values + gap * signs, None, precision) is None
    assert missed(kept, kept.values + gap * signs, 1e-3) is not None  # as it was for all
    other = kept.values + 0.3 * spread(kept) * signs
    assert missed(kept, other, None, precision) is not None
    assert missed(kept, np.roll(kept.values, 1), None, precision) is not None


def test_exact_rewards_are_held_to_what_they_were() -> None:
    sizes = golden(*np.linspace(10.0, 90.0, 8))  # JPEGs in kB, which differ far more than they may be missed
    assert missed(sizes, sizes.values + 0.011, None, "float64") is not None
    assert missed(sizes, sizes.values * (1 + 0.9e-3), None, "float64") is None


def test_the_coarser_of_both_sides_counts() -> None:
    scores = np.array([5.4, 5.9, 5.1, 6.0])
    fine = Golden(np.zeros((4, 1)), ("a",) * 4, scores, False, "float32")
    coarse = Golden(np.zeros((4, 1)), ("a",) * 4, scores, False, "bfloat16")
    for kept, precision in ((fine, "bfloat16"), (coarse, "float32")):
        assert missed(kept, scores + 0.03, None, precision) is None
    assert missed(fine, scores + 0.03, None, "float32") is not None


def test_a_number_may_be_missed_by_what_its_type_can_not_hold() -> None:
    kept = golden(64.0, 64.0)  # no spread
    assert allowed(kept, None, "bfloat16").tolist() == [1.0, 1.0]
    assert allowed(kept, None, "float32").tolist() == [0.064, 0.064]


def test_infinite_scores_have_no_part_in_the_spread() -> None:
    assert spread(golden(1.0, 3.0, -INF)) == 1.0 and spread(golden(-INF)) == 0.0
    assert np.isfinite(allowed(golden(1.0, 3.0, -INF), None, "bfloat16")).all()
    assert deviation(golden(1.0, -INF), np.array([1.25, -INF])) == 0.25
    assert deviation(golden(1.0, -INF), np.array([1.0, 2.0])) == INF


def test_precision_is_the_coarsest_of_its_networks() -> None:
    class Reward:
        def __init__(self, **held: Any) -> None:
            self.__dict__ |= held

    half = torch.nn.Linear(2, 2).to(torch.bfloat16)
    both = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).half())
    assert precision_of(Reward()) == "float64"
    assert precision_of(Reward(net=torch.nn.Linear(2, 2), threshold=1.0)) == "float32"
    assert precision_of(both) == "float16"
    assert precision_of(Reward(inner=Reward(pipeline={"model": half}), parts=[torch.nn.Linear(1, 1)])) == "bfloat16"
    assert precision_of(Reward(net=torch.nn.Linear(2, 2), precision="float16")) == "float16"
    assert precision_of(Reward(library=torch, cls=torch.nn.Linear)) == "float64"
    ring = Reward()
    ring.__dict__["self"] = ring
    assert precision_of(ring) == "float64"
    assert coarsest("float32", "int8") == "bfloat16" and coarsest("int64", "float32") == "float32"


def test_rows_from_first_to_last_are_kept_as_a_copy() -> None:
    samples = np.arange(44.0).reshape(22, 2)
    rows, conditions = some_rows(samples, [str(i) for i in range(22)])
    samples[:] = 0
    assert conditions == ("0", "3", "6", "9", "12", "15", "18", "21")
    assert rows.shape == (ROWS, 2) and rows[-1].tolist() == [42.0, 43.0]
    few, texts = some_rows(rows[:3], ["x", "y", "z"])
    assert few.tolist() == rows[:3].tolist() and texts == ("x", "y", "z")


def test_a_label_can_not_leave_the_folder() -> None:
    assert golden_path("../a b") == "golden/..%2Fa b.npz"
