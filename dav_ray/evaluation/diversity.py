"""How different samples are from each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pairwise_distance(features: np.ndarray) -> float:
    """Mean Euclidean distance over all pairs of distinct rows, features [n, D]; 0 for fewer than two."""
    n = len(features)
    if n < 2:
        return 0.0
    x = features.astype(np.float64)
    square = (x * x).sum(1)
    distance = np.sqrt(np.maximum(square[:, None] + square[None] - 2 * x @ x.T, 0))
    np.fill_diagonal(distance, 0)
    return float(distance.sum() / (n * (n - 1)))


def edit_distances(texts: Sequence[str], others: Sequence[str]) -> np.ndarray:
    """Levenshtein distances [n, m] int32: insertions, deletions and substitutions, in letters."""
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cdist

    return cdist(texts, others, scorer=Levenshtein.distance, dtype=np.int32, workers=1)


def mean_edit_distance(texts: Sequence[str]) -> float:
    """Over all pairs of distinct rows; 0 for fewer than two."""
    n = len(texts)
    return float(edit_distances(texts, texts).sum(dtype=np.int64) / (n * (n - 1))) if n > 1 else 0.0
