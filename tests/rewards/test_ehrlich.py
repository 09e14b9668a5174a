"""Ehrlich functions: against slow loops, the optimum that is known, what is infeasible, one seed one function."""

from __future__ import annotations

import hashlib
import itertools
import math
import pickle
import time
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dav_ray.rewards.ehrlich import Ehrlich

SMALL = {"length": 12, "motifs": 2, "motif_length": 3, "letters": 3}
KINDS = [{}, SMALL, {"letters": 20, "length": 50, "motifs": 3, "motif_length": 5, "quantization": 2, "seed": 3}]


def score(function: Ehrlich, tokens: Tensor) -> Tensor:
    return function(tokens, [""] * len(tokens))


def by_loops(function: Ehrlich, row: Sequence[int]) -> float:
    """The definition, letter by letter."""
    if any(function.transitions[a, b] == 0 for a, b in itertools.pairwise(row)):
        return -math.inf
    product = 1.0
    for motif, offsets in zip(function.motifs.tolist(), function.offsets.tolist(), strict=True):
        best, q, k = 0.0, function.quantization, len(motif)
        for start in range(len(row) - offsets[-1]):
            stand = sum(row[start + o] == letter for letter, o in zip(motif, offsets, strict=True))
            best = max(best, math.floor(q * stand / k) / q)
        product *= best
    return product


def feasible_and_not(function: Ehrlich, num: int) -> Tensor:
    """Walks, walks with one letter changed, the optimum with one letter changed, uniform letters."""
    rng = np.random.default_rng(0)
    rows = [function.initial(num, 0), function.initial(num, 1), function.optimum().repeat(num, 1)]
    for tokens in rows[1:]:
        tokens[range(num), rng.integers(function.length, size=num)] = torch.from_numpy(
            rng.integers(function.letters, size=num)
        )
    return torch.cat([*rows, torch.from_numpy(rng.integers(function.letters, size=(num, function.length)))])


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_definition(kind: dict[str, int]) -> None:
    function = Ehrlich(**kind)
    tokens = feasible_and_not(function, 25)
    values = score(function, tokens)

    assert values.dtype == torch.float64
    assert values.tolist() == pytest.approx([by_loops(function, row) for row in tokens.tolist()], abs=1e-12)
    assert 0 < torch.isneginf(values).sum() < len(values) - 25
    assert torch.equal(torch.isneginf(values), ~function.feasible(tokens))


@settings(max_examples=60, deadline=None)
@given(
    letters=st.integers(3, 25),
    motifs=st.integers(1, 6),
    motif_length=st.integers(2, 7),
    spare=st.integers(0, 30),
    levels=st.integers(1, 7),
    seed=st.integers(0, 2**32),
)
def test_the_optimum_is_real(letters: int, motifs: int, motif_length: int, spare: int, levels: int, seed: int) -> None:
    """For every function that can be asked for: value 1.0, and a chain that reaches every letter from every other."""
    length = motifs * motif_length + spare
    function = Ehrlich(length, motifs, motif_length, min(levels, motif_length), letters, seed)
    steps = np.linalg.matrix_power((function.transitions > 0).astype(float), letters)

    assert score(function, function.optimum()[None]).tolist() == [1.0]
    assert by_loops(function, function.optimum().tolist()) == 1.0
    assert function.transitions.sum(axis=1) == pytest.approx(1.0)
    assert (steps > 0).all() and (np.diag(function.transitions) > 0).all()
    assert ((function.transitions == 0).sum(axis=1) == max(1, letters // 4)).all()
    assert (function.offsets[:, 0] == 0).all() and (np.diff(function.offsets) > 0).all()
    assert function.offsets.max() < length // motifs
    assert function.feasible(function.initial(5, seed)).all()


def test_nothing_is_above_the_optimum() -> None:
    """All 3^9 sequences of a function so small that they can be listed."""
    function = Ehrlich(length=9, motifs=2, motif_length=3, letters=3)
    everything = torch.tensor(list(itertools.product(range(3), repeat=9)))
    values = score(function, everything)

    assert values.max() == 1.0
    assert torch.equal(torch.isneginf(values), ~function.feasible(everything))
    # without its banned pairs each letter has two successors
    assert function.feasible(everything).sum() == 3 * 2**8


def test_every_banned_pair_gives_minus_infinity() -> None:
    function = Ehrlich(letters=8, seed=2)
    for a, b in np.argwhere(function.banned):
        for place in (0, 60, function.length - 2):
            tokens = function.optimum()
            tokens[place], tokens[place + 1] = int(a), int(b)
            assert score(function, tokens[None]).tolist() == [-math.inf]


@pytest.mark.parametrize("quantization", [1, 2, 3, 8])
def test_quality_has_as_many_levels_as_asked(quantization: int) -> None:
    """One motif: the value is the share of its letters, rounded down to a multiple of 1 / q."""
    function = Ehrlich(length=40, motifs=1, quantization=quantization)
    fine = Ehrlich(length=40, motifs=1, quantization=8)
    tokens = torch.cat([function.initial(300, 0), function.optimum()[None]])
    levels = score(function, tokens) * quantization

    assert torch.equal(levels, levels.round())
    assert torch.equal(levels, (score(fine, tokens) * quantization).floor())


def test_a_shifted_motif_counts_as_much() -> None:
    """One motif, moved through the sequence by repeating its first letter before it."""
    function = Ehrlich(length=60, motifs=1, motif_length=6, seed=5)
    optimum = function.optimum()
    span = int(function.offsets[0, -1]) + 1
    for shift in range(60 - span + 1):
        moved = torch.cat([optimum[:1].repeat(shift), optimum[: 60 - shift]])
        assert score(function, moved[None]).tolist() == [1.0]


def test_same_seed_same_function() -> None:
    """Also on another machine: the digest is what this function was when it was written."""
    function, again, other = Ehrlich(seed=1), pickle.loads(pickle.dumps(Ehrlich(seed=1))), Ehrlich(seed=2)
    tokens = function.initial(100, 7)
    drawn = np.concatenate([function.banned.ravel(), function.motifs.ravel(), function.offsets.ravel()])

    assert torch.equal(again.initial(100, 7), tokens)
    assert torch.equal(score(again, tokens), score(function, tokens))
    assert torch.equal(score(function, tokens.flip(0)).flip(0), score(function, tokens))
    assert not torch.equal(score(other, tokens), score(function, tokens))
    assert hashlib.sha256(drawn.astype("<i8").tobytes()).hexdigest()[:16] == "7fa3334e0a98da06"


def test_initial_sequences_walk_the_chain() -> None:
    function = Ehrlich(seed=4)
    tokens = function.initial(2000, 0).numpy()
    pairs = np.zeros((4, 4))
    np.add.at(pairs, (tokens[:, :-1].ravel(), tokens[:, 1:].ravel()), 1)

    np.testing.assert_allclose(pairs / pairs.sum(axis=1, keepdims=True), function.transitions, atol=0.01)
    np.testing.assert_allclose(np.bincount(tokens[:, 0]) / 2000, 0.25, atol=0.05)
    assert torch.equal(function.initial(10, 0), function.initial(2000, 0)[:10])
    assert not torch.equal(function.initial(10, 1), function.initial(10, 0))
    assert score(function, function.initial(2000, 0)).max() < 1.0


def test_ten_thousand_sequences_take_well_under_a_second() -> None:
    function = Ehrlich()
    tokens = function.initial(10_000, 0)
    start = time.process_time()
    score(function, tokens)

    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ({"length": 63}, "length = 63; allowed: at least 64, the letters of all motifs"),
        ({"letters": 2}, "letters = 2; allowed: 3 to 254, of two letters no pair can be banned"),
        ({"motifs": 0}, "motifs = 0 of 8 letters; allowed: at least 1, of 2 to 255 letters"),
        ({"motif_length": 1}, "motifs = 8 of 1 letters; allowed: at least 1, of 2 to 255 letters"),
        ({"quantization": 9}, "quantization = 9; allowed: 1 to 8, the letters of a motif"),
        ({"quantization": 0}, "quantization = 0; allowed: 1 to 8, the letters of a motif"),
        ({"seed": -1}, "seed = -1; allowed: 0 or more"),
    ],
)
def test_what_no_function_can_be_built_from(args: dict[str, int], line: str) -> None:
    with pytest.raises(ValueError) as caught:
        Ehrlich(**args)
    assert str(caught.value) == line


def test_tokens_of_another_kind_are_refused() -> None:
    function = Ehrlich(**SMALL)
    for tokens, line in [
        (torch.zeros(2, 11, dtype=torch.int64), r"shape \[2, 11\]; allowed: tokens \[B, 12\]"),
        (torch.zeros(2, 12, 3), r"shape \[2, 12, 3\]; allowed: tokens \[B, 12\]"),
        (torch.full((2, 12), 3), r"tokens in 3..3; allowed: 0..2"),
        (torch.full((2, 12), -1), r"tokens in -1..-1; allowed: 0..2"),
    ]:
        with pytest.raises(ValueError, match=line):
            score(function, tokens)
