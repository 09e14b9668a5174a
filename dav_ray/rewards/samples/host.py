"""From the model's device to the host: checked, and as small as rewards allow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dav_ray.rewards.samples.pixels import to_pixels

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

ROWS = 8  # that are turned into pixels at once


class NotFinite(ValueError):
    """rows: which samples have a number that is none."""

    def __init__(self, rows: list[int]) -> None:
        super().__init__(f"samples {rows} are not finite")
        self.rows = rows


def to_host(samples: Tensor, *, pixels: bool, checked: bool = True) -> np.ndarray:
    """Floating samples as float32, or images [B, 3, H, W] as uint8; tokens as they are. checked: raises NotFinite
    before any number that is none becomes one: a NaN would be a black pixel.

    On a GPU the copies of some rows go on while the next ones are turned into pixels; the host waits once, for all."""
    import torch

    samples = samples.detach()
    if not samples.is_floating_point():
        return samples.cpu().numpy()
    on_gpu = samples.device.type == "cuda"
    if not (pixels or on_gpu):
        host = samples.float().cpu()
        if checked and not bool(torch.isfinite(host.flatten(1).sum(1)).all()):
            _check(host)
        return host.numpy()
    kind = torch.uint8 if pixels else torch.float32
    rows = max(1, ROWS if pixels else len(samples))
    there = torch.empty(samples.shape, dtype=kind, pin_memory=True) if on_gpu else None
    sums, parts = [], []
    for part in samples.split(rows):
        sums.append(part.flatten(1).sum(1, dtype=torch.float32))
        part = to_pixels(part) if pixels else part.float()
        if there is None:
            parts.append(part)
        else:
            at = rows * (len(sums) - 1)
            there[at : at + len(part)].copy_(part, non_blocking=True)
    # this waits for the copies too: they were asked for before
    if not bool(torch.isfinite(torch.cat(sums)).all()) and checked:
        _check(samples)
    if there is not None:
        return there.numpy()
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).cpu().numpy()


def _check(samples: Tensor) -> None:
    """A sum that is not finite may be one of numbers that are."""
    import torch

    rows = (~torch.isfinite(samples).flatten(1).all(1)).nonzero()[:, 0].tolist()
    if rows:
        raise NotFinite(rows)
