"""Samples on their way to the rewards: nothing that is no number becomes one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dav_ray.rewards.samples.host import ROWS, NotFinite, to_host
from dav_ray.rewards.samples.pixels import to_pixels


def images(num: int = 3 * ROWS + 1) -> torch.Tensor:
    return torch.rand((num, 3, 8, 8), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("num", [0, 1, ROWS, 3 * ROWS + 1])
def test_pixels_or_float32_in_order(num: int) -> None:
    batch = images(num)
    assert np.array_equal(to_host(batch, pixels=True), to_pixels(batch).numpy())
    assert np.array_equal(to_host(batch, pixels=False), batch.numpy())
    assert to_host(batch, pixels=True).nbytes * 4 == to_host(batch, pixels=False).nbytes


def test_other_precisions_come_as_float32_and_without_a_graph() -> None:
    batch = images(2)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        found = to_host(batch.to(dtype).requires_grad_(), pixels=False)
        assert found.dtype == np.float32 and np.array_equal(found, batch.to(dtype).float().numpy())


def test_tokens_are_as_they_are() -> None:
    tokens = torch.arange(8).reshape(2, 4)
    assert to_host(tokens, pixels=False).tolist() == tokens.tolist() and to_host(tokens, pixels=False).dtype == np.int64


@pytest.mark.parametrize("pixels", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named_by_row(pixels: bool, value: float) -> None:
    batch = images()
    for row in (0, ROWS + 2, 3 * ROWS):
        batch[row, 1, 7, 7] = value
    with pytest.raises(NotFinite) as caught:
        to_host(batch, pixels=pixels)
    assert caught.value.rows == [0, ROWS + 2, 3 * ROWS]


def test_infinities_that_cancel_are_found() -> None:
    batch = images(2)
    batch[1, 0, 0, 0], batch[1, 0, 0, 1] = math.inf, -math.inf
    with pytest.raises(NotFinite) as caught:
        to_host(batch, pixels=False)
    assert caught.value.rows == [1]


def test_large_numbers_are_numbers() -> None:
    batch = torch.full((2, 5, 4), 3e38)
    assert np.array_equal(to_host(batch, pixels=False), batch.numpy())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("pixels", [True, False])
def test_from_a_gpu_the_same_arrives(pixels: bool) -> None:
    batch = images(64)
    assert np.array_equal(to_host(batch.cuda(), pixels=pixels), to_host(batch, pixels=pixels))
    batch[5] = math.nan
    with pytest.raises(NotFinite) as caught:
        to_host(batch.cuda(), pixels=pixels)
    assert caught.value.rows == [5]
