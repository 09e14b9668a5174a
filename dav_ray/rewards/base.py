"""What a reward is, and the check that stands between a reward and the search.

A failed, missing or NaN reward is an error, never a number. Minus infinity is a value: the sample has weight 0.
"""

from __future__ import annotations

import dataclasses
import random
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from dav_ray.errors import DataError, RewardError, RunError
from dav_ray.rewards.faults.causes import Fault, fault_of, retry_after
from dav_ray.rewards.faults.patience import Patience
from dav_ray.rewards.samples.host import NotFinite, to_host
from dav_ray.rewards.samples.pixels import are_images, as_wanted, wants_of

if TYPE_CHECKING:
    from torch import Tensor


TRACE = 8000  # characters of a traceback that are kept, the last ones


class Reward(Protocol):
    """Higher is better. `differentiable`: r may be differentiated with respect to `samples` by autograd. A class may
    have more to say: `wants` (`samples.pixels`), `by_row` (`Calls` of any size give the same bits), `precision`
    (`golden.precision_of`)."""

    differentiable: bool

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        """samples: images [B, 3, H, W] float32 in [0, 1] (uint8 if it wants that), or token ids [B, L] int64 (one-hot
        [B, L, V] float32 where a gradient is asked); conditions: B prompts -> [B]. Each value depends on its own sample
        alone, so that gradients are per sample."""
        ...


@dataclass(frozen=True)
class Scored:
    """One reward's answer as it crosses processes: numbers, or the error in words. With a fault the numbers are those
    of the samples before it."""

    values: np.ndarray | None = None  # [B] float64
    grads: np.ndarray | None = None  # like samples, float32: d r_b / d samples_b
    error: str | None = None
    trace: str | None = None  # where the error came from
    fault: Fault | None = None  # what may help against the error; None: nothing
    retry_after_s: float | None = None  # not to be asked again before, where the other side said so
    dtype: str = ""  # of the tensor that the reward gave


@dataclass(frozen=True)
class Asked:
    """What rewards were asked, and what they answered: the evidence where that was no number."""

    samples: np.ndarray  # [B, ...]
    conditions: Sequence[str]  # B
    rewards: Sequence[str]
    answers: Sequence[Scored]  # one per reward; none where the samples were not shown to them


def evaluate(reward: Reward, samples: np.ndarray, conditions: Sequence[str], grad: bool) -> Scored:
    """Call a reward on numpy samples. Whatever it raises is reported as `error`: the fault lies in reward or data."""
    import torch

    try:
        batch = torch.from_numpy(np.array(samples))  # a writable copy: arrays from the object store are read-only
        if not grad:
            with torch.no_grad():
                return _numbers(reward(as_wanted(batch, wants_of(reward)), conditions))
        with torch.enable_grad():
            batch.requires_grad_()
            values = reward(batch, conditions)
            (slope,) = torch.autograd.grad(values.sum(), batch)
        return dataclasses.replace(_numbers(values), grads=slope.numpy())
    except Exception as error:
        return failed(error, traceback.format_exc())


def failed(error: BaseException, trace: str) -> Scored:
    """What a reward raised, as its answer."""
    words = f"{type(error).__name__}: {error}"
    return Scored(error=words, trace=trace[-TRACE:], fault=fault_of(error), retry_after_s=retry_after(error))


class Calls:
    """A reward that is shown so many samples at once, and fewer once memory ran out.

    batch: most samples of a call, None: no limit. retry_s: how long a call is made again here that fails for now; None:
    whoever asks does that.
    """

    def __init__(self, reward: Any, batch: int | None = None, retry_s: float | None = None) -> None:
        self.reward, self.batch, self._retry_s = reward, batch, retry_s
        self._events: list[tuple[str, dict[str, Any]]] = []

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """(name, fields) of what happened since this was asked last."""
        found, self._events = self._events, []
        return found

    def __call__(self, samples: np.ndarray, conditions: Sequence[str], grad: bool, most: int | None = None) -> Scored:
        """The answer for all samples; most: a limit of this call alone. Where a later call fails, and something may
        help, the numbers before it are kept."""
        parts: list[Scored] = []
        at, total = 0, len(samples)
        while at < total or not parts:
            limits = [limit for limit in (self.batch, most) if limit is not None]
            piece = slice(at, min([total, *(at + limit for limit in limits)]))
            num = piece.stop - at
            part = self._patiently(samples[piece], conditions[piece], grad)
            if part.fault == "memory" and num > 1:
                self._halve(num, part.error)
                continue
            if num == total:
                return part
            if part.error is not None:
                return part if part.fault is None or not parts else _joined(parts, grad, part)
            if wrong := wrong_shape(part, num):
                return Scored(error=wrong)
            parts.append(part)
            at = piece.stop
        return _joined(parts, grad, Scored())

    def _patiently(self, samples: np.ndarray, conditions: Sequence[str], grad: bool) -> Scored:
        patience = Patience(self._retry_s or 0.0)
        while True:
            scored = evaluate(self.reward, samples, conditions, grad)
            if scored.fault != "transient" or self._retry_s is None:
                return scored
            pause_s = patience.pause(time.monotonic(), random.random(), scored.retry_after_s)
            if pause_s is None:
                return scored
            self._events.append(("reward_retried", patience.told(pause_s, scored.error)))
            time.sleep(pause_s)

    def _halve(self, num: int, cause: str | None) -> None:
        from dav_ray.diffusion.device import free_memory, memory_in_words

        self.batch = num // 2
        free_memory()
        self._events.append(("out_of_memory", {"batch": self.batch, "took": memory_in_words(), "cause": cause}))


def wrong_shape(scored: Scored, num: int) -> str:
    """What is wrong with the shape of the values of `num` samples; nothing where it is right."""
    shape = [] if scored.values is None else list(scored.values.shape)
    return "" if shape == [num] else f"shape {shape} where [{num}] is needed"


def _joined(parts: Sequence[Scored], grad: bool, last: Scored) -> Scored:
    """The numbers of all parts, with the error of `last` if it has one."""
    grads = np.concatenate([part.grads for part in parts if part.grads is not None]) if grad else None
    values = [part.values for part in parts if part.values is not None]
    return dataclasses.replace(last, values=np.concatenate(values), grads=grads)


def check(scored: Scored, num: int, *, reward: str, chunk: str, asked: Asked | None = None) -> np.ndarray:
    """The values [num] float64. RewardError where the reward raised, or gave a wrong shape, a NaN or plus infinity;
    RunError where it could not answer for too long."""
    if scored.fault == "transient":
        lost = RunError("reward", f"{reward}: asked again in vain (roles.reward.retry_s): {scored.error}")
        lost.trace = scored.trace
        raise lost
    if scored.error is not None:
        fault = _fault(asked, reward, chunk, scored.error, "raised")
        fault.trace = scored.trace
        raise fault
    values = cast(np.ndarray, scored.values)
    if wrong := wrong_shape(scored, num):
        raise _fault(asked, reward, chunk, wrong, "shape")
    bad = np.asarray(np.isnan(values) | (values == np.inf))
    if bad.any():
        row = int(bad.argmax())
        raise _fault(asked, reward, chunk, f"{values[row]} for sample {row} of {num}", str(values[row]), bad)
    if scored.grads is not None:
        bad = np.asarray(~np.isfinite(scored.grads.reshape(num, -1)).all(1))
        if bad.any():
            raise _fault(asked, reward, chunk, "a gradient that is not finite", "gradient", bad)
    return values


def _fault(
    asked: Asked | None, reward: str, chunk: str, value: str, what: str, bad: np.ndarray | None = None
) -> RewardError:
    """bad: [B], which samples are at fault, where that is known."""
    error = RewardError(reward, chunk, value, what, () if bad is None else tuple(bad.nonzero()[0].tolist()))
    error.evidence = asked
    return error


Call = Callable[[np.ndarray, Sequence[str], bool], list[Scored]]


class Scorer:
    """The weighted sum of one or several rewards, checked: what a search strategy calls.

    call(samples, conditions, grad) -> one `Scored` per reward, in the order of `names`; local or remote. pixels():
    whether all of them want images as uint8, which is what they are sent then.
    """

    def __init__(
        self,
        names: Sequence[str],
        weights: Sequence[float],
        call: Call,
        chunk: str = "",
        pixels: Callable[[], bool] = lambda: False,
    ) -> None:
        self._names, self._weights, self._call, self._chunk = tuple(names), tuple(weights), call, chunk
        self._pixels = pixels

    def of(self, chunk: str, waiting: Callable[[], AbstractContextManager[None]] = nullcontext) -> Scorer:
        """The same rewards; errors name this chunk, answers are awaited in the context `waiting`."""

        def call(samples: np.ndarray, conditions: Sequence[str], grad: bool) -> list[Scored]:
            with waiting():
                return self._call(samples, conditions, grad)

        return Scorer(self._names, self._weights, call, chunk, self._pixels)

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    def score(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        return self.score_each(samples, conditions)[0]

    def score_each(self, samples: Tensor, conditions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The sum [N], and each reward's own value, unweighted, in the order of `names`, [N, R] float64."""
        total, each, _ = self._sum(samples, conditions, grad=False)
        return total, each

    def score_and_grad(self, samples: Tensor, conditions: Sequence[str]) -> tuple[Tensor, Tensor]:
        total, _, grads = self._sum(samples, conditions, grad=True)
        assert grads is not None
        return total, grads

    def _sum(self, samples: Tensor, conditions: Sequence[str], grad: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        import torch

        array, names = self._sent(samples, conditions, grad), self._names
        answers = self._call(array, conditions, grad)
        asked = Asked(array, conditions, names, answers)
        total, slope = np.zeros(len(conditions)), np.zeros(samples.shape, np.float32) if grad else None
        each = np.empty((len(conditions), len(names)))
        for column, (name, weight, scored) in enumerate(zip(names, self._weights, answers, strict=True)):
            values = check(scored, len(conditions), reward=name, chunk=self._chunk, asked=asked)
            each[:, column] = values
            with np.errstate(invalid="ignore"):  # named below
                total += weight * values
            if slope is not None:
                slope += np.float32(weight) * cast(np.ndarray, scored.grads)
        # a weight below zero makes plus infinity of a minus, a weight of zero a NaN
        bad = np.asarray(np.isnan(total) | (total == np.inf))
        if bad.any():
            raise _fault(asked, " + ".join(names), self._chunk, "a sum that is no number", "sum", bad)
        return torch.from_numpy(total), torch.from_numpy(each), None if slope is None else torch.from_numpy(slope)

    def _sent(self, samples: Tensor, conditions: Sequence[str], grad: bool) -> np.ndarray:
        """What rewards are shown. DataError where a sample is not finite."""
        try:
            return to_host(samples, pixels=not grad and are_images(samples) and self._pixels())
        except NotFinite as found:
            words = f"the model gave a sample that is not finite in chunk {self._chunk}"
            error = DataError("search", words, "sample", found.rows)
            error.evidence = Asked(to_host(samples, pixels=False, checked=False), conditions, (), ())
            raise error from None


def local_scorer(rewards: Sequence[tuple[str, float, Any]]) -> Scorer:
    """A scorer whose rewards (name, weight, object) live in this process."""

    def call(samples: np.ndarray, conditions: Sequence[str], grad: bool) -> list[Scored]:
        return [evaluate(reward, samples, conditions, grad) for _, _, reward in rewards]

    return Scorer([r[0] for r in rewards], [r[1] for r in rewards], call, pixels=all_pixels(r[2] for r in rewards))


def all_pixels(rewards: Iterable[Any]) -> Callable[[], bool]:
    """Whether rewards in this process all want images as uint8."""
    answer = {wants_of(reward) for reward in rewards} == {"uint8"}
    return lambda: answer


def _numbers(values: Any) -> Scored:
    import torch

    if not isinstance(values, torch.Tensor):
        raise TypeError(f"returned {type(values).__name__}, a torch.Tensor is needed")
    return Scored(values.detach().cpu().double().numpy(), dtype=str(values.dtype).removeprefix("torch."))
