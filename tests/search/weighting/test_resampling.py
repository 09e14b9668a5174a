"""Resampling: the copies of a particle are K w in expectation, in each scheme's own way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dav_ray.search.weighting.resampling import SCHEMES

WEIGHTS = torch.tensor([0.31, 0.02, 0.25, 0.0, 0.13, 0.29], dtype=torch.float64)


def copies(name: str, weights: Tensor, num: int, repeats: int = 4000) -> Tensor:
    """[repeats, N]: copies of each particle."""
    u = torch.rand(repeats, max(num, len(weights)), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = [SCHEMES[name](weights, num, row) for row in u]
    assert all(torch.equal(a, a.sort().values) and len(a) == num for a in found)
    return torch.stack([torch.bincount(a, minlength=len(weights)) for a in found]).double()


@pytest.mark.parametrize("num", [1, 4, 6, 15])
@pytest.mark.parametrize("name", SCHEMES)
def test_copies_are_k_w_in_expectation(name: str, num: int) -> None:
    found = copies(name, WEIGHTS, num)
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - num * WEIGHTS).abs() <= 4 * error + 1e-12).all()
    assert (error < 0.02).all() and (found[:, 3] == 0).all()


@pytest.mark.parametrize("name", ["systematic", "ssp"])
def test_copies_are_k_w_rounded_down_or_up(name: str) -> None:
    for num in (1, 4, 6, 15):
        assert ((copies(name, WEIGHTS, num, 500) - num * WEIGHTS).abs() < 1).all()


def test_strata_hold_one_draw_each() -> None:
    u = torch.rand(500, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    edges = torch.cat([torch.zeros(1), WEIGHTS.cumsum(0)])
    for row in u:
        for stratum, i in enumerate(SCHEMES["stratified"](WEIGHTS, 6, row).tolist()):
            assert edges[i] * 6 < stratum + 1 and edges[i + 1] * 6 >= stratum


@pytest.mark.parametrize("name", SCHEMES)
def test_equal_weights_keep_everyone(name: str) -> None:
    for size in (1, 2, 7, 100):
        u = torch.rand(size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
        assert SCHEMES[name](torch.full((size,), 1 / size, dtype=torch.float64), size, u).tolist() == list(range(size))


@pytest.mark.parametrize("name", SCHEMES)
def test_one_weight_takes_all(name: str) -> None:
    for u in (0.0, 0.5, 1 - 1e-16):
        row = torch.full((5,), u, dtype=torch.float64)
        assert SCHEMES[name](torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0]), 5, row).tolist() == [2] * 5


def test_ssp_varies_less_than_strata() -> None:
    weights = torch.softmax(torch.randn(30, generator=torch.Generator().manual_seed(3), dtype=torch.float64), 0)
    spread = {name: float(copies(name, weights, 30, 1000).var(0).sum()) for name in SCHEMES}
    assert spread["ssp"] < 0.95 * spread["stratified"]
