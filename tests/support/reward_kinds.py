"""Small rewards that a fleet is tried with: each is the sum of a sample's numbers, and has one fault."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor


class Total:
    """Takes `pace` seconds for a call; writes down how many samples each call has, and who was called."""

    differentiable = True

    def __init__(self, pace: float = 0.0, folder: str = "") -> None:
        self.pace, self.folder = pace, Path(folder)

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        assert len(conditions) == len(samples)
        time.sleep(self.pace)
        if self.folder != Path():
            for name, what in (("calls", len(samples)), ("workers", os.getpid())):
                with open(self.folder / name, "a") as file:
                    file.write(f"{what}\n")
        return samples.flatten(1).sum(1)


class Positive(Total):
    """Raises where a number is below zero."""

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        values = super().__call__(samples, conditions)
        if bool((samples < 0).any()):
            raise ValueError("a number below zero")
        return values


class Stuck(Total):
    """The first `times` calls of all replicas never end."""

    def __init__(self, folder: str, times: int) -> None:
        super().__init__()
        self.marks, self.times = Path(folder), times

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        if len(list(self.marks.glob("stuck-*"))) < self.times:
            (self.marks / f"stuck-{uuid.uuid4().hex}").touch()
            time.sleep(1e6)
        return super().__call__(samples, conditions)


class Drift(Total):
    """Every further replica says `step` more."""

    def __init__(self, folder: str, step: float) -> None:
        super().__init__()
        self.offset = step * len(list(Path(folder).glob("built-*")))
        (Path(folder) / f"built-{os.getpid()}").touch()

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        return super().__call__(samples, conditions) + self.offset


class Broken(Total):
    def __init__(self) -> None:
        raise ValueError("no such weights")


class Small(Total):
    """Has memory for `room` samples at once."""

    def __init__(self, folder: str, room: int) -> None:
        super().__init__(folder=folder)
        self.room = room

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        values = super().__call__(samples, conditions)
        if len(samples) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return values


class Lost(Total):
    """In the first `times` processes that meet a number below zero, the device fails for good."""

    def __init__(self, folder: str, times: int) -> None:
        super().__init__()
        self.marks, self.times, self.lost = Path(folder), times, False

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        met = self.marks / f"lost-{os.getpid()}"
        if bool((samples < 0).any()) and len(list(self.marks.glob("lost-*"))) < self.times:
            met.touch()
        if met.exists():
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return super().__call__(samples, conditions)


class Busy(Total):
    """Samples from the number `since` on are refused, `times` times in all."""

    def __init__(self, folder: str, since: float, times: int) -> None:
        super().__init__(folder=folder)
        self.marks, self.since, self.times = Path(folder), since, times

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        values = super().__call__(samples, conditions)
        if bool((samples >= self.since).any()) and len(list(self.marks.glob("busy-*"))) < self.times:
            (self.marks / f"busy-{uuid.uuid4().hex}").touch()
            raise ConnectionResetError("the service restarts")
        return values


class Late(Total):
    """Every further replica is refused at its first call."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.ready = not list(Path(folder).glob("built-*"))
        (Path(folder) / f"built-{os.getpid()}").touch()

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        if not self.ready:
            self.ready = True
            raise TimeoutError("it loads its weights")
        return super().__call__(samples, conditions)
