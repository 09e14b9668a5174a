"""What rewards cost on one core, and what a search has to send them."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dav_ray.rewards.base import evaluate
from dav_ray.rewards.registry import build
from dav_ray.rewards.samples.pixels import wants_of
from jobs.performance.options import Found, Options
from jobs.performance.timing import Series, in_turn
from jobs.tables import Table

KINDS = (  # reward, images' height and width or the length of sequences, samples of a call
    ("jpeg_compressibility", 512, 32),
    ("jpeg_compressibility", 1024, 8),
    ("jpeg_compressibility", 32, 64),
    ("brightness", 512, 32),
    ("target_colour", 512, 32),
    ("digit_legibility", 32, 64),
    ("gc_content", 200, 64),
)
OF_SEQUENCES = ("gc_content",)


@dataclass(frozen=True)
class OneCore:
    """bytes: of one sample as it is sent; per_s: samples per second in one thread."""

    reward: str
    size: int
    bytes: int
    per_s: Series

    def row(self) -> tuple[str, ...]:
        what = f"{self.size} letters" if self.reward in OF_SEQUENCES else f"{self.size} x {self.size}"
        return self.reward, what, f"{self.bytes:,}", self.per_s.show()


def run(options: Options) -> Found:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        measured = list(_measured(options.turns))
    finally:
        torch.set_num_threads(threads)
    header = ("reward", "sample", "bytes in", "samples per second")
    return Found([Table("Rewards on one core", header, tuple(each.row() for each in measured))], measured)


def _measured(turns: int) -> Iterator[OneCore]:
    for kind, size, num in KINDS:
        reward = build(kind, {})
        shown, texts = samples(kind, size, num, reward), ["seven"] * num
        found = in_turn({kind: functools.partial(_per_s, reward, shown, texts)}, turns)
        yield OneCore(kind, size, shown[0].nbytes, found[kind])


def _per_s(reward: Any, shown: np.ndarray, texts: Sequence[str]) -> float:
    """By the time that this thread computes, which is that of a core that nobody shares."""
    start = time.thread_time()
    evaluate(reward, shown, texts, False)
    return len(shown) / (time.thread_time() - start)


def samples(kind: str, size: int, num: int, reward: Any) -> np.ndarray:
    """As they are sent: smooth colours with some noise, or letters."""
    rng = np.random.default_rng(0)
    if kind in OF_SEQUENCES:
        return rng.integers(0, 4, (num, size))
    coarse = torch.from_numpy(rng.random((num, 3, 8, 8), np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").numpy()
    images = np.clip(smooth + 0.03 * rng.standard_normal(smooth.shape).astype(np.float32), 0, 1)
    return np.rint(255 * images).astype(np.uint8) if wants_of(reward) == "uint8" else images
