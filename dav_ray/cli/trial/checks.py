"""What the contract of a reward says, tried on a few samples: `rewards.base.Reward`.

A finding is ok, wrong, or only a note; what is wrong says what to do.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from dav_ray.cli.trial.samples import Shown
from dav_ray.rewards.base import Scored, evaluate
from dav_ray.rewards.golden import DEFAULT as TOLERANCE
from dav_ray.run_dir.tracebacks import own_part

ALONE = "no batch statistics (eval() for networks), no mean, rank or softmax over the batch"
TENSOR = "return a torch.Tensor of one number for each sample, for instance torch.as_tensor(values)"
WAYS = {  # what a shape that is wrong may come from
    0: "one value for each sample, not their mean; squeeze(1) and not squeeze(), which takes a batch of one away",
    2: "squeeze(1) where it is [B, 1]; else one number for each sample",
}


@dataclass(frozen=True)
class Finding:
    title: str
    ok: bool | None  # None: a note
    words: str = ""
    advice: str = ""
    trace: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """values [B] float64 where `scored` is fine; kind: of the tensor that came; seconds: of the call."""

    scored: Scored
    kind: str
    seconds: float

    @property
    def values(self) -> np.ndarray:
        assert self.scored.values is not None
        return self.scored.values


class Asking:
    """Calls a reward as a reward actor does, and notes what came."""

    def __init__(self, reward: Any) -> None:
        self._reward = reward
        self.differentiable = bool(getattr(reward, "differentiable", False))
        self.wants = getattr(reward, "wants", "float32")
        self._kind = ""

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        found = self._reward(samples, conditions)
        self._kind = str(found.dtype).removeprefix("torch.") if isinstance(found, Tensor) else type(found).__name__
        return found

    def ask(self, samples: Tensor, conditions: Sequence[str], grad: bool = False) -> Answer:
        start = time.perf_counter()
        scored = evaluate(self, samples.numpy(), conditions, grad)
        return Answer(scored, self._kind, time.perf_counter() - start)


def contract(asking: Asking, shown: Shown, first: Answer) -> Iterator[Finding]:
    """All but the gradient. first: what was said of all samples; after a finding that leaves no numbers there are no
    more."""
    fault = _fault(first, len(shown.conditions))
    if fault is not None:
        yield fault
        return
    yield Finding("one number for each sample", True, f"[{len(first.values)}], {first.kind}")
    bad = [i for i, value in enumerate(first.values) if np.isnan(value) or value == np.inf]
    if bad:
        words = f"{first.values[bad[0]]} for sample {bad[0]} ({shown.names[bad[0]]})"
        yield Finding("no NaN, no plus infinity", False, words, "return minus infinity for a sample that can't be used")
        return
    yield Finding("no NaN, no plus infinity", True)
    yield from _same_twice(asking, shown, first)
    yield from _each_alone(asking, shown, first)
    if len(first.values) > 1 and len(set(first.values.tolist())) == 1:
        yield Finding("values differ", None, "all samples are worth the same: a search can choose nothing among them")


def other_sizes(asking: Asking, others: Sequence[Shown]) -> Iterator[Finding]:
    """Notes: a model draws images of one size."""
    for shown in others:
        fault = _fault(asking.ask(shown.samples, shown.conditions), len(shown.conditions))
        if fault is not None:
            yield Finding(shown.what, None, fault.words, "this does not matter if your model draws no such images")


def _fault(answer: Answer, num: int) -> Finding | None:
    scored = answer.scored
    if scored.error is not None:
        listed = scored.error.startswith("TypeError: returned ")
        trace = () if listed else tuple(own_part(scored.trace))
        return Finding("answers", False, scored.error, TENSOR if listed else "", trace)
    if answer.values.shape != (num,):
        words = f"shape {list(answer.values.shape)} where [{num}] is needed"
        return Finding("one number for each sample", False, words, WAYS.get(answer.values.ndim, TENSOR))
    return None


def _same_twice(asking: Asking, shown: Shown, first: Answer) -> Iterator[Finding]:
    title, again = "the same when asked twice", asking.ask(shown.samples, shown.conditions)
    fault = _fault(again, len(shown.conditions))
    advice = "no random numbers (eval() for dropout), or a generator that the sample seeds; no state between calls"
    yield fault or _compared(title, first.values, again.values, shown.names, advice)


def _each_alone(asking: Asking, shown: Shown, first: Answer) -> Iterator[Finding]:
    title, num = "each value depends on its own sample alone", len(shown.conditions)
    alone = []
    for i in range(num):
        one = asking.ask(shown.samples[i : i + 1], shown.conditions[i : i + 1])
        if (fault := _fault(one, 1)) is not None:
            yield Finding("one sample alone", False, fault.words, fault.advice or ALONE, fault.trace)
            return
        alone.append(one.values[0])
    order = [*range(1, num), 0]
    turned = asking.ask(shown.samples[order], [shown.conditions[i] for i in order])
    if (fault := _fault(turned, num)) is not None:
        yield fault
        return
    back = np.empty(num)
    back[order] = turned.values
    found = _compared(title, first.values, np.array(alone), shown.names, ALONE, " in the batch, {} alone")
    yield found if not found.ok else _compared(title, first.values, back, shown.names, ALONE, ", {} in another order")


def _compared(
    title: str, a: np.ndarray, b: np.ndarray, names: Sequence[str], advice: str, form: str = ", then {}"
) -> Finding:
    """Whether two answers are as near as golden scores have to be."""
    with np.errstate(invalid="ignore"):
        gap = np.where(a == b, 0.0, np.abs(a - b) / np.maximum(1.0, np.abs(a)))
    gap[np.isnan(gap)] = np.inf
    i = int(gap.argmax())
    if gap[i] > TOLERANCE:
        return Finding(title, False, f"sample {i} ({names[i]}): {a[i]:.7g}{form.format(f'{b[i]:.7g}')}", advice)
    return Finding(title, True, f"within {gap[i]:.1g}" if gap[i] else "bit by bit")
