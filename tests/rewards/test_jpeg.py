"""JPEG sizes: of pixels as of numbers in [0, 1], in one thread as in several."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from PIL import Image
from torch import Tensor

from dav_ray.rewards.jpeg import LARGE, JpegCompressibility, JpegIncompressibility, jpeg_kilobytes
from dav_ray.rewards.samples.pixels import to_pixels


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def images(num: int, size: int) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand((num, 3, 4, 4), generator=rng)
    soft = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return (soft + 0.1 * torch.rand((num, 3, size, size), generator=rng)).clamp(0, 1)


def test_several_threads_give_the_values_of_one(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, seen = images(9, 96), set[str]()
    assert batch[0, 0].numel() >= LARGE
    save = Image.Image.save

    def noted(self: Image.Image, *args: object, **options: object) -> None:
        seen.add(threading.current_thread().name.split("_")[0])
        save(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "save", noted)
    several = jpeg_kilobytes(batch)
    assert seen == {"jpeg"}
    seen.clear()
    torch.set_num_threads(1)
    one = jpeg_kilobytes(batch)
    assert seen == {"MainThread"}
    assert several.tolist() == one.tolist() and len(set(one.tolist())) > 1
    assert several.dtype == torch.float64


def test_small_images_and_single_ones_stay_in_this_thread(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dav_ray.rewards.jpeg.ThreadPoolExecutor", None)
    assert len(jpeg_kilobytes(images(5, 32))) == 5 and len(jpeg_kilobytes(images(1, 96))) == 1
    assert len(jpeg_kilobytes(images(5, 96)[:0])) == 0


def test_pixels_have_the_size_of_the_numbers_that_they_come_from() -> None:
    """Halves between two pixels too: both are rounded to even."""
    batch = images(4, 64)
    batch[0] = ((torch.arange(3 * 64 * 64) % 256 + 0.5) / 255).reshape(3, 64, 64).clamp(0, 1)
    for reward in (JpegCompressibility(), JpegIncompressibility(30)):
        assert reward.wants == "uint8"
        assert reward(to_pixels(batch), []).tolist() == reward(batch, []).tolist()
