"""k-mers counted and compared, against counting by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from dav_ray.diffusion.masked.alphabet import Alphabet
from dav_ray.evaluation import kmers
from dav_ray.evaluation.kmers import correlation, count_kmers

DNA = Alphabet.of("dna")


def tokens(*texts: str) -> np.ndarray:
    return np.stack([DNA.encode(text) for text in texts])


def key(word: str) -> int:
    return sum(int(token) * 256**i for i, token in enumerate(DNA.encode(word)))


@pytest.mark.parametrize("k", [1, 3, 8])
def test_every_window_counts(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmers, "BLOCK", 3)
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("ACGT"), 12)) for _ in range(10)] + ["A" * 12]
    expected = Counter(key(text[i : i + k]) for text in texts for i in range(12 - k + 1))

    assert count_kmers(tokens(*texts), k) == expected


def test_sequences_shorter_than_k_have_none() -> None:
    assert count_kmers(tokens("ACG"), 4) == Counter()


def test_correlation_is_pearsons_over_kmers_that_either_has() -> None:
    x = count_kmers(tokens("AACC", "AAAC"), 1)  # A 5, C 3
    y = count_kmers(tokens("AACT"), 1)  # A 2, C 1, T 1
    expected = np.corrcoef([5, 3, 0], [2, 1, 1])[0, 1]

    assert correlation(x, y) == pytest.approx(expected)
    assert correlation(x, x) == pytest.approx(1.0)
    assert correlation(x, Counter({n: 7 * times for n, times in x.items()})) == pytest.approx(1.0)


def test_counts_without_variance_have_no_correlation() -> None:
    level = count_kmers(tokens("ACGT"), 1)
    assert correlation(level, level) is None
    assert correlation(Counter(), level) is None
    assert correlation(count_kmers(tokens("AAAA"), 2), count_kmers(tokens("AAAA"), 2)) is None
