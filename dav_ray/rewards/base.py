"""What a reward is, and the check that stands between a reward and the search.

A failed, missing or NaN reward is an error, never a number. Minus infinity is a value: the sample has weight 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from dav_ray.errors import RewardError, RunError

if TYPE_CHECKING:
    from torch import Tensor


class Reward(Protocol):
    """Higher is better. `differentiable`: r may be differentiated with respect to `samples` by autograd."""

    differentiable: bool

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        """samples: images [B, 3, H, W] float32 in [0, 1], or token ids [B, L] int64 (one-hot [B, L, V] float32 where a
        gradient is asked); conditions: B prompts -> [B]. Each value depends on its own sample alone, so that gradients
        are per sample."""
        ...


@dataclass(frozen=True)
class Scored:
    """One reward's answer as it crosses processes: numbers, or the error in words."""

    values: np.ndarray | None = None  # [B] float64
    grads: np.ndarray | None = None  # like samples, float32: d r_b / d samples_b
    error: str | None = None


def evaluate(reward: Reward, samples: np.ndarray, conditions: Sequence[str], grad: bool) -> Scored:
    """Call a reward on numpy samples. Whatever it raises is reported as `error`: the fault lies in reward or data."""
    import torch

    batch = torch.from_numpy(np.array(samples))  # a writable copy: arrays from the object store are read-only
    try:
        if not grad:
            with torch.no_grad():
                return Scored(_numbers(reward(batch, conditions)))
        with torch.enable_grad():
            batch.requires_grad_()
            values = reward(batch, conditions)
            (slope,) = torch.autograd.grad(values.sum(), batch)
        return Scored(_numbers(values), slope.numpy())
    except Exception as error:
        return Scored(error=f"{type(error).__name__}: {error}")


def check(scored: Scored, num: int, *, reward: str, chunk: str) -> np.ndarray:
    """The values [num] float64. RewardError where the reward raised, or gave a wrong shape, a NaN or plus infinity."""
    if scored.error is not None:
        raise RewardError(reward=reward, chunk=chunk, value=scored.error)
    values = cast(np.ndarray, scored.values)
    if values.shape != (num,):
        raise RewardError(reward=reward, chunk=chunk, value=f"shape {list(values.shape)} where [{num}] is needed")
    bad = np.isnan(values) | (values == np.inf)
    if bad.any():
        row = int(bad.argmax())
        raise RewardError(reward=reward, chunk=chunk, value=f"{values[row]} for sample {row} of {num}")
    if scored.grads is not None and not np.isfinite(scored.grads).all():
        raise RewardError(reward=reward, chunk=chunk, value="a gradient that is not finite")
    return values


Call = Callable[[np.ndarray, Sequence[str], bool], list[Scored]]


class Scorer:
    """The weighted sum of one or several rewards, checked: what a search strategy calls.

    call(samples, conditions, grad) -> one `Scored` per reward, in the order of `names`; local or remote.
    """

    def __init__(self, names: Sequence[str], weights: Sequence[float], call: Call, chunk: str = "") -> None:
        self._names, self._weights, self._call, self._chunk = tuple(names), tuple(weights), call, chunk

    def of(self, chunk: str) -> Scorer:
        """The same rewards; errors name this chunk."""
        return Scorer(self._names, self._weights, self._call, chunk)

    def score(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        return self._sum(samples, conditions, grad=False)[0]

    def score_and_grad(self, samples: Tensor, conditions: Sequence[str]) -> tuple[Tensor, Tensor]:
        values, grads = self._sum(samples, conditions, grad=True)
        assert grads is not None
        return values, grads

    def _sum(self, samples: Tensor, conditions: Sequence[str], grad: bool) -> tuple[Tensor, Tensor | None]:
        import torch

        if not bool(torch.isfinite(samples).all()):
            # a NaN pixel would be cast to black, the smallest JPEG there is
            raise RunError("search", f"the model gave a sample that is not finite in chunk {self._chunk}")
        held = samples.detach().cpu()
        answers = self._call((held.float() if held.is_floating_point() else held).numpy(), conditions, grad)
        total, slope = np.zeros(len(conditions)), np.zeros(samples.shape, np.float32) if grad else None
        for name, weight, scored in zip(self._names, self._weights, answers, strict=True):
            values = check(scored, len(conditions), reward=name, chunk=self._chunk)
            with np.errstate(invalid="ignore"):  # named below
                total += weight * values
            if slope is not None:
                slope += np.float32(weight) * cast(np.ndarray, scored.grads)
        # a weight below zero makes plus infinity of a minus, a weight of zero a NaN
        if (np.isnan(total) | (total == np.inf)).any():
            raise RewardError(reward=" + ".join(self._names), chunk=self._chunk, value="a sum that is no number")
        return torch.from_numpy(total), None if slope is None else torch.from_numpy(slope)


def local_scorer(rewards: Sequence[tuple[str, float, Any]]) -> Scorer:
    """A scorer whose rewards (name, weight, object) live in this process."""

    def call(samples: np.ndarray, conditions: Sequence[str], grad: bool) -> list[Scored]:
        return [evaluate(reward, samples, conditions, grad) for _, _, reward in rewards]

    return Scorer([r[0] for r in rewards], [r[1] for r in rewards], call)


def _numbers(values: Any) -> np.ndarray:
    import torch

    if not isinstance(values, torch.Tensor):
        raise TypeError(f"returned {type(values).__name__}, a torch.Tensor is needed")
    return values.detach().cpu().double().numpy()
