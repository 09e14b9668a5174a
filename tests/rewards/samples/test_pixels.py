"""Images as rewards want them: pixels are rounded as a JPEG reward rounds, whoever does it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dav_ray.rewards.samples.pixels import as_wanted, to_pixels, wants_of


def test_pixels_are_rounded_to_the_nearest_and_halves_to_even() -> None:
    values = np.arange(1025, dtype=np.float32) / 1024
    halves = ((np.arange(255) + 0.5) / 255).astype(np.float32)
    found = to_pixels(torch.from_numpy(np.concatenate([values, halves])).reshape(1, 1, 1, -1))
    expected = np.rint(np.concatenate([values, halves]) * np.float32(255)).astype(np.uint8)
    assert found.dtype == torch.uint8 and np.array_equal(found.flatten().numpy(), expected)


def test_all_pixels_survive_the_way_there_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_pixels(as_wanted(pixels, "float32")), pixels)


@pytest.mark.parametrize("wants, dtype", [("uint8", torch.uint8), ("float32", torch.float32)])
def test_images_come_in_the_type_that_is_wanted(wants: Any, dtype: torch.dtype) -> None:
    images = torch.rand((2, 3, 4, 4))
    for given in (images, to_pixels(images)):
        found = as_wanted(given, wants)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float() / (255 if wants == "uint8" else 1), images, atol=0.51 / 255, rtol=0)
    assert as_wanted(images, "float32") is images


def test_tokens_are_as_they_are() -> None:
    tokens, relaxed = torch.arange(8).reshape(2, 4), torch.rand(2, 4, 5)
    for wants in ("uint8", "float32"):
        assert as_wanted(tokens, wants) is tokens and as_wanted(relaxed, wants) is relaxed


def test_what_no_reward_is_shown() -> None:
    assert wants_of(SimpleNamespace()) == "float32" and wants_of(SimpleNamespace(wants="uint8")) == "uint8"
    with pytest.raises(ValueError, match="^wants = 'int8'; allowed: uint8, float32$"):
        wants_of(SimpleNamespace(wants="int8"))
    with pytest.raises(ValueError, match="pixels have no gradient; allowed: one of them"):
        wants_of(SimpleNamespace(wants="uint8", differentiable=True))
