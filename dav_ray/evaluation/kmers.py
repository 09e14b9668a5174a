"""k-mers: which short words sequences are made of."""

from __future__ import annotations

from collections import Counter

import numpy as np

BLOCK = 1024  # sequences counted at once, which bounds the memory


def count_kmers(tokens: np.ndarray, k: int) -> Counter[int]:
    """Occurrences of every k-mer, overlapping ones too, in tokens [N, L] uint8; k <= 8. None where L < k.

    A k-mer's key is the number that its tokens are in base 256.
    """
    counts: Counter[int] = Counter()
    if tokens.shape[1] < k:
        return counts
    places = np.uint64(256) ** np.arange(k, dtype=np.uint64)
    for start in range(0, len(tokens), BLOCK):
        words = np.lib.stride_tricks.sliding_window_view(tokens[start : start + BLOCK], k, axis=1)
        keys, times = np.unique(words.astype(np.uint64) @ places, return_counts=True)
        counts.update(dict(zip(keys.tolist(), times.tolist(), strict=True)))
    return counts


def correlation(counts: Counter[int], others: Counter[int]) -> float | None:
    """Pearson's r of the frequencies, over the k-mers that occur in either; None where one side has no variance."""
    kmers = sorted(counts | others)
    x, y = (np.array([side[kmer] for kmer in kmers], np.float64) for side in (counts, others))
    if len(kmers) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])
