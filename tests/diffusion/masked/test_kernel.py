"""Masked kernels against laws that are written out for all 256 states of a model of 3 letters and length 4."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dav_ray.diffusion.masked.kernel import END, NEVER, MaskedKernel, MaskedSchedule, sigma_at, substitute
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.testing.enumerable import INDEX, LENGTH, LETTERS, MASK, STATES, Table, letters, model, transition, unmask

X = torch.tensor(STATES)
ALL = X.expand(len(STATES), -1, -1)  # every state as an outcome of every state
BELOW_ONE = math.nextafter(1.0, 0.0)
SOME = [INDEX[state] for state in ((3, 3, 3, 3), (3, 0, 3, 2), (1, 3, 3, 3), (0, 1, 2, 0))]


def kernel(t: int = 3, moved: float = 0.0, tilted: bool = False) -> MaskedKernel:
    """At all states."""
    table = model(moved=moved).trainable().linear.detach()
    plain = MaskedKernel(X, substitute(table, X), torch.full((len(STATES),), unmask(t), dtype=torch.float64))
    return plain.tilt(slope()) if tilted else plain


def slope() -> Tensor:
    return torch.randn(len(STATES), LENGTH, LETTERS + 1, generator=torch.Generator().manual_seed(5))


def matrix(t: int = 3, moved: float = 0.0, tilted: bool = False) -> Tensor:
    """p(after | state) [256, 256], by loops; tilted: times exp of the slope at the outcome, normalised."""
    p, g, out = letters(model(moved=moved)), slope().double().tolist(), []
    for i, state in enumerate(STATES):
        row = []
        for after in STATES:
            weight = transition(state, after, p[i], unmask(t))
            if tilted and weight:
                weight *= math.exp(sum(g[i][place][v] for place, v in enumerate(after) if state[place] == MASK))
            row.append(weight)
        out.append([weight / sum(row) for weight in row] if tilted else row)
    return torch.tensor(out, dtype=torch.float64)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "tilted"])
def pair(request: pytest.FixtureRequest) -> tuple[MaskedKernel, Tensor]:
    return kernel(tilted=request.param), matrix(tilted=request.param)


class Fixed:
    """Draws that were chosen by hand."""

    def __init__(self, u: Tensor) -> None:
        self.u = u

    def uniform(self, shape: Sequence[int]) -> Tensor:
        assert tuple(shape) == self.u.shape[1:]
        return self.u

    def normal(self, shape: Sequence[int]) -> Tensor:
        raise AssertionError("a masked kernel needs none")


def test_log_prob_is_that_of_every_successor(pair: tuple[MaskedKernel, Tensor]) -> None:
    found, expected = pair
    log_p = found.log_prob(ALL)

    assert log_p.shape == (256, 256) and log_p.dtype == torch.float64
    torch.testing.assert_close(log_p.exp(), expected, rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(256, dtype=torch.float64), rtol=0, atol=1e-6)
    assert torch.equal(log_p.isneginf(), expected == 0)


def test_outcomes_are_the_marginals(pair: tuple[MaskedKernel, Tensor]) -> None:
    found, expected = pair
    marginals = torch.einsum("ij,jlv->ilv", expected, torch.nn.functional.one_hot(X, LETTERS + 1).double())

    torch.testing.assert_close(found.outcomes().exp(), marginals, rtol=1e-5, atol=1e-12)


def test_samples_follow_the_enumerated_law(pair: tuple[MaskedKernel, Tensor]) -> None:
    found, expected, many = pair[0].take(torch.tensor(SOME)), pair[1][SOME], 20_000
    x = found.sample(many, KeyedNoise(0, 1, range(len(SOME))).at(0))
    place = (x * torch.tensor([(LETTERS + 1) ** k for k in reversed(range(LENGTH))])).sum(-1)
    shares = torch.stack([torch.bincount(row, minlength=256) for row in place]) / many

    assert x.shape == (len(SOME), many, LENGTH) and x.dtype == torch.int64
    assert ((shares - expected).abs() <= 4.5 * (expected * (1 - expected) / many).sqrt()).all()
    assert torch.equal(found.log_prob(x), found.log_prob(ALL[: len(SOME)]).gather(1, place))


def test_inversion_gives_every_letter_its_share(pair: tuple[MaskedKernel, Tensor]) -> None:
    """On a grid of u each outcome has its probability, up to one point at either edge."""
    found, many = pair[0].take(torch.tensor(SOME)), 4000
    grid = (torch.arange(many, dtype=torch.float64) + 0.5) / many
    x = found.sample(many, Fixed(grid.reshape(1, many, 1).expand(len(SOME), many, LENGTH)))
    counts = torch.nn.functional.one_hot(x, LETTERS + 1).sum(1)

    assert (counts - many * found.outcomes().exp()).abs().max() <= 1
    assert (x.diff(dim=1) >= 0).all()


def test_what_is_impossible_is_never_drawn() -> None:
    """Letters of probability zero, first, between and last; a mask that must go; u at its ends, and tails where the sum
    of the others is rounded below one."""
    x = torch.full((3000, 1), MASK)
    logits = 3 * torch.randn(3000, 1, LETTERS + 1, generator=torch.Generator().manual_seed(0))
    for place in range(LETTERS):
        logits[1000 * place : 1000 * (place + 1), 0, place] = -torch.inf if place == 1 else 5 * NEVER
    found = MaskedKernel(x, substitute(logits, x), torch.ones(3000, dtype=torch.float64))
    for u in (0.0, 1e-300, 0.5, BELOW_ONE):
        drawn = found.sample(1, Fixed(torch.full((3000, 1, 1), u, dtype=torch.float64)))
        assert (drawn < MASK).all()
        assert (drawn[:, 0, 0].reshape(LETTERS, 1000) != torch.arange(LETTERS)[:, None]).all()
        assert found.log_prob(drawn).isfinite().all()
    assert (drawn[2000:] == 1).all() and (drawn[:2000] == 2).all()


def test_unmasked_positions_stay_whatever_the_tilt() -> None:
    x = torch.tensor([[0, 1, 2, MASK]])
    found = MaskedKernel(x, substitute(torch.zeros(1, 4, 4), x), torch.tensor([0.5])).tilt(50 * slope()[:1])
    drawn = found.sample(500, KeyedNoise(0, 1, [0]).at(0))

    assert (drawn[..., :3] == x[:, None, :3]).all()


def test_nll_is_minus_the_log_density_less_what_the_schedule_decides() -> None:
    found, u = kernel(t=2), unmask(2)
    for after in ((0, 0, 3, 2), (1, 1, 1, 1), (3, 3, 3, 3), (0, 3, 0, 3)):
        outcome = torch.tensor(after).expand(256, -1)
        log_p = found.log_prob(outcome[:, None])[:, 0]
        left = ((X == MASK) & (outcome == MASK)).sum(1)
        gone = ((X == MASK) & (outcome != MASK)).sum(1)
        constant = gone * math.log(u) + left * math.log(1 - u)
        possible = log_p.isfinite()

        assert bool(possible.any())
        torch.testing.assert_close(
            found.nll(outcome)[possible].double(), (constant - log_p)[possible], rtol=1e-5, atol=1e-5
        )
        assert torch.equal(found.nll(outcome.to(torch.uint8)), found.nll(outcome))


def test_the_nll_of_counts_is_linear() -> None:
    found = kernel()
    onehot = torch.nn.functional.one_hot(torch.tensor([1, 0, 2, MASK]), LETTERS + 1)[..., :-1].float()

    torch.testing.assert_close(found.nll(onehot.expand(256, -1, -1)), found.nll(torch.tensor([[1, 0, 2, MASK]])))
    half = 0.25 * found.nll(torch.zeros(256, 4, dtype=torch.int64)) + 0.5 * found.nll(onehot.expand(256, -1, -1))
    mixed = 0.5 * onehot + 0.25 * torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(found.nll(mixed.expand(256, -1, -1)), half)


def test_kl_is_the_sum_over_successors() -> None:
    p, q = matrix(), matrix(moved=0.8)
    terms = torch.where(p > 0, p * (p / q).log(), 0.0).sum(1)
    found = kernel().kl(kernel(moved=0.8))

    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), terms, rtol=1e-4, atol=1e-6)
    assert (found[X.eq(MASK).any(1)] > 1e-5).all() and (found[~X.eq(MASK).any(1)] == 0).all()


@pytest.mark.parametrize("tilted", [False, True])
def test_blend_by_hand(tilted: bool) -> None:
    found = kernel(tilted=tilted).take(torch.tensor(SOME))
    candidates = found.sample(3, KeyedNoise(0, 1, range(len(SOME))).at(0))
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64).expand(len(SOME), 3)
    blend, pi = found.blend(candidates, weights), found.outcomes().exp()

    assert blend.shape == (len(SOME), LENGTH, LETTERS) and blend.dtype == torch.float32
    for i, place, v in itertools.product(range(len(SOME)), range(LENGTH), range(LETTERS)):
        drawn = [float(c == v) for c in candidates[i, :, place].tolist()]
        expected = float(pi[i, place, v]) + sum((w - 1 / 3) * d for w, d in zip((0.5, 0.2, 0.3), drawn, strict=True))
        masked = STATES[SOME[i]][place] == MASK
        assert float(blend[i, place, v]) == pytest.approx(expected if masked else 0.0, abs=1e-6)


def test_tilts_add_up_and_no_tilt_is_the_identity() -> None:
    found, g = kernel(), slope()
    noise = KeyedNoise(0, 1, range(256))

    torch.testing.assert_close(found.tilt(torch.zeros_like(g)).outcomes(), found.outcomes(), rtol=0, atol=1e-6)
    assert torch.equal(found.tilt(torch.zeros_like(g)).sample(4, noise.at(0)), found.sample(4, noise.at(0)))
    torch.testing.assert_close(found.tilt(g).tilt(-0.5 * g).outcomes(), found.tilt(0.5 * g).outcomes())


def test_a_tilt_of_the_mask_alone_moves_when_masks_go() -> None:
    """Odds of staying masked times e^2; among the letters nothing changes."""
    g = torch.zeros(256, LENGTH, LETTERS + 1)
    g[..., MASK] = 2.0
    plain, moved = kernel().outcomes()[X == MASK].exp(), kernel().tilt(g).outcomes()[X == MASK].exp()
    odds = moved[:, MASK] / (1 - moved[:, MASK]) / (plain[:, MASK] / (1 - plain[:, MASK]))

    torch.testing.assert_close(odds, torch.full_like(odds, math.exp(2)), rtol=1e-6, atol=0)
    torch.testing.assert_close(moved[:, :3] / moved[:, :1], plain[:, :3] / plain[:, :1])


def test_take_keeps_the_slope_and_join_puts_back() -> None:
    rows = torch.tensor([9, 3, 255, 3])
    for found in (kernel(), kernel(tilted=True)):
        assert torch.equal(found.take(rows).log_prob(ALL[rows]), found.log_prob(ALL)[rows])
    halves = [kernel().take(torch.arange(0, 100)), kernel().take(torch.arange(100, 256))]
    assert torch.equal(halves[0].join(halves[1]).log_prob(ALL), kernel().log_prob(ALL))


def test_detach_leaves_no_graph() -> None:
    table: Any = Table(0)
    found = MaskedKernel(X, substitute(table.linear, X), torch.full((256,), 0.5))

    assert found.nll(X).requires_grad
    assert not found.detach().nll(X).requires_grad
    assert torch.equal(found.detach().log_prob(ALL), found.log_prob(ALL))


def test_substitution() -> None:
    """Never a mask, unmasked positions carried over, letters normalised; the mask's own logit says nothing."""
    logits = 3 * torch.randn(256, LENGTH, LETTERS + 1, generator=torch.Generator().manual_seed(0))
    log_p = substitute(logits, X)
    masked = X == MASK

    assert (log_p[..., MASK] == NEVER).all() and NEVER == -1e6
    expected = torch.softmax(logits[..., :LETTERS].double(), -1)
    torch.testing.assert_close(log_p[masked][:, :LETTERS].exp().double(), expected[masked], rtol=1e-5, atol=1e-7)
    assert torch.equal(log_p[~masked].exp(), torch.nn.functional.one_hot(X[~masked], LETTERS + 1).float())
    moved = logits + 7.0
    moved[..., MASK] = 1e4
    torch.testing.assert_close(substitute(moved, X), log_p, rtol=1e-5, atol=1e-5)
    assert substitute(logits.bfloat16(), X).dtype == torch.float32


@pytest.mark.parametrize("steps", [2, 4, 128])
def test_schedule(steps: int) -> None:
    """Time goes from 1 to 1e-5 in equal steps; log-linear noise sigma = -log(1 - (1 - 1e-3) time)."""
    schedule = MaskedSchedule(steps)
    time = [END + (1 - END) * t / steps for t in range(steps + 1)]

    assert schedule.unmask.tolist() == pytest.approx([0.0] + [unmask(t, steps) for t in range(1, steps + 1)], rel=1e-9)
    assert schedule.sigma.tolist() == pytest.approx([-math.log(1 - 0.999 * s) for s in time], rel=1e-9)
    assert torch.equal(sigma_at(torch.tensor(time, dtype=torch.float64)), schedule.sigma)
    # a mask is left after all steps with the chance of the last time
    assert float((1 - schedule.unmask).prod()) == pytest.approx(1e-5, rel=1e-9)
    assert (schedule.sigma[0], schedule.sigma[-1]) == (pytest.approx(0.999e-5, rel=1e-4), pytest.approx(math.log(1e3)))
