"""The likelihood bound of masked models: exact by quadrature, unbiased as it is estimated."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dav_ray.diffusion.masked.alphabet import Alphabet
from dav_ray.diffusion.masked.elbo import TIME_MIN, antithetic_times, nelbo
from dav_ray.diffusion.masked.model import MaskedDiffusion
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.testing.base import BulkNoise
from dav_ray.testing.enumerable import (
    INDEX,
    LENGTH,
    LETTERS,
    MASK,
    SEQUENCES,
    STATES,
    Table,
)
from dav_ray.types import Cost
from tests.support.dilated import cnn, tokens


def exact_table(joint: Tensor) -> Table:
    """A network whose conditionals are those of a joint law over the 81 sequences."""
    table = Table(0)
    with torch.no_grad():
        for i, state in enumerate(STATES):
            agree = torch.tensor([all(a in (MASK, b) for a, b in zip(state, x, strict=True)) for x in SEQUENCES])
            for place, v in itertools.product([k for k, token in enumerate(state) if token == MASK], range(LETTERS)):
                here = torch.tensor([x[place] == v for x in SEQUENCES])
                table.linear[i, place, v] = (joint * (agree & here)).sum().log()
    return table


def orders(table: Table, x: tuple[int, ...], given: tuple[int, ...] = ()) -> Tensor:
    """log p(x | given places) by each order in which the other letters may be read, [orders] float64."""
    p = torch.softmax(table.linear.detach().double()[..., :LETTERS], -1)
    found = []
    for order in itertools.permutations([place for place in range(LENGTH) if place not in given]):
        state, total = [x[k] if k in given else MASK for k in range(LENGTH)], 0.0
        for place in order:
            total += math.log(p[INDEX[tuple(state)], place, x[place]])
            state[place] = x[place]
        found.append(total)
    return torch.tensor(found, dtype=torch.float64)


def exact_or_not(exact: bool) -> tuple[Table, Tensor]:
    """A table, and log p of every sequence if its conditionals are those of one law."""
    joint = torch.softmax(torch.randn(81, generator=torch.Generator().manual_seed(2)), 0).double()
    return (exact_table(joint), joint.log()) if exact else (Table(4), torch.full((81,), torch.nan))


@pytest.mark.parametrize("exact", [True, False])
def test_the_bound_is_the_mean_over_orders(exact: bool) -> None:
    """Its integral over t, exact: a sum over the 16 ways to hide letters is a polynomial in t of degree 3.

    It is the mean log-probability over the orders in which letters are read, so below the log of their mean; of exact
    conditionals it is log p itself.
    """
    table, log_joint = exact_or_not(exact)
    diffusion = MaskedDiffusion(table, alphabet=Alphabet("ABC"), length=LENGTH)
    hidden = torch.tensor(list(itertools.product([0.0, 1.0], repeat=LENGTH)), dtype=torch.float64)
    nodes, shares = np.polynomial.legendre.leggauss(4)
    for x in [(0, 1, 2, 1), (2, 1, 0, 0), (1, 1, 1, 1)]:
        bound = 0.0
        for t, share in zip((nodes + 1) / 2, shares / 2, strict=True):
            chance = torch.where(hidden == 1, t, 1 - t).prod(1)
            times, u = torch.full((16,), t, dtype=torch.float64), 1 - hidden
            term = nelbo(lambda x, _: diffusion.log_probs(x), torch.tensor(x).expand(16, -1), times, u, MASK)
            bound -= share * float((chance * term.detach()).sum())
        by_order = orders(table, x)

        assert bound == pytest.approx(float(by_order.mean()), abs=1e-4)
        if exact:
            assert bound == pytest.approx(float(log_joint[SEQUENCES.index(x)]), abs=1e-4)
        else:
            assert bound < float(by_order.exp().mean().log()) - 0.01


@pytest.mark.parametrize("condition", ["", "fixed=1:B"])
@pytest.mark.parametrize("exact", [True, False])
def test_the_elbo_is_an_unbiased_estimate(exact: bool, condition: str) -> None:
    """Of exact conditionals, with letters given: log p(the others | those)."""
    (table, log_joint), many, draws = exact_or_not(exact), 4000, 6
    diffusion = MaskedDiffusion(table, alphabet=Alphabet("ABC"), length=LENGTH, micro_batch=many)
    given = (1,) if condition else ()
    for number, x in enumerate([(0, 1, 2, 1), (2, 1, 0, 0)]):
        before, noise = diffusion.cost, BulkNoise(number, many)
        found = diffusion.elbo(torch.tensor(x).expand(many, -1), [condition] * many, noise.at(0), draws)
        error, by_order = float(found.std()) / many**0.5, orders(table, x, given)

        assert found.shape == (many,) and found.dtype == torch.float64
        assert diffusion.cost - before == Cost(reference=many * draws)
        assert abs(float(found.mean() - by_order.mean())) < 4 * error + 2e-3  # times below 1e-3 are left out
        assert error < 0.1
        if exact:
            same = [k for k, other in enumerate(SEQUENCES) if all(other[place] == x[place] for place in given)]
            log_p = log_joint[SEQUENCES.index(x)] - log_joint[same].logsumexp(0)
            assert by_order.tolist() == pytest.approx([float(log_p)] * len(by_order), abs=1e-5)


def test_strata_cover_the_interval() -> None:
    """One time in each of `num` equal parts of [1e-3, 1]; each by itself, drawn over u, is uniform."""
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    times = antithetic_times(u, 4)
    parts = ((times - TIME_MIN) / (1 - TIME_MIN) * 4).floor()

    assert times.shape == (1000, 4) and times.min() > TIME_MIN and times.max() < 1
    assert (parts == torch.arange(4.0)).all()
    assert float(times.mean()) == pytest.approx((1 + TIME_MIN) / 2, abs=1e-9)


def test_the_elbo_is_the_pretrained_models() -> None:
    x, noise = tokens(3, masked=0.0), KeyedNoise(0, 1, range(3))
    base = cnn().elbo(x, [""] * 3, noise.at(0), 4)

    assert torch.equal(cnn(adapted=True).elbo(x, [""] * 3, noise.at(0), 4), base)
    alone = cnn().elbo(x[1:2], [""], KeyedNoise(0, 1, [1]).at(0), 4)
    torch.testing.assert_close(alone, base[1:2], rtol=1e-5, atol=1e-5)
