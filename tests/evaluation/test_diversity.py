"""Distances between samples, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dav_ray.evaluation.diversity import edit_distances, mean_edit_distance, pairwise_distance


@pytest.mark.parametrize("num, scale", [(2, 1.0), (7, 1.0), (40, 1e-3), (40, 1e3)])
def test_pairwise_distance_is_the_mean_over_distinct_pairs(num: int, scale: float) -> None:
    x = scale * torch.randn((num, 5), generator=torch.Generator().manual_seed(0)) + 1
    expected = torch.pdist(x.double()).mean()

    assert pairwise_distance(x.numpy()) == pytest.approx(float(expected), rel=1e-4)


def test_pairwise_distance_of_few_or_equal_rows_is_zero() -> None:
    assert pairwise_distance(np.ones((1, 5), np.float32)) == 0.0
    assert pairwise_distance(np.ones((0, 5), np.float32)) == 0.0
    assert pairwise_distance(np.full((4, 5), 0.1, np.float32)) == pytest.approx(0.0, abs=1e-6)


def test_an_edit_is_an_insertion_a_deletion_or_a_substitution() -> None:
    """A shift by one letter is two edits, though every position differs."""
    assert edit_distances(["ACGT", "ACGTACGT"], ["ACGT", "ACCT", "CGTA", "CGTACGTA"]).tolist() == [
        [0, 1, 2, 4],
        [4, 4, 4, 2],
    ]


def test_mean_edit_distance_is_over_distinct_pairs() -> None:
    """AAAA-AAAT 1, AAAA-TTTT 4, AAAT-TTTT 3, and the repeated AAAA 0, 1, 4."""
    assert mean_edit_distance(["AAAA", "AAAT", "TTTT"]) == pytest.approx((1 + 4 + 3) / 3)
    assert mean_edit_distance(["AAAA", "AAAT", "TTTT", "AAAA"]) == pytest.approx((1 + 4 + 3 + 0 + 1 + 4) / 6)
    assert mean_edit_distance(["AAAA"]) == mean_edit_distance([]) == 0.0
