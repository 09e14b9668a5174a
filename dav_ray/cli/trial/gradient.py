"""A reward's gradient, tried: autograd against finite differences, and that no value depends on another sample."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dav_ray.cli.trial.checks import ALONE, Asking, Finding
from dav_ray.cli.trial.samples import Shown
from dav_ray.run_dir.tracebacks import own_part

STEPS = (3e-2, 1e-2, 3e-3, 1e-3)  # of finite differences, in units of pixels or probabilities
NEAR = 0.05  # relative error that is let through
ROUNDING = 1e-6  # of float32 arithmetic, times a value's size
INTERIOR = 0.8  # how far samples are from the edge of what is allowed: differences need room
LEAVES = "stay in torch between samples and value: no detach, item, numpy, PIL, no_grad, round, argmax"


def gradient(asking: Asking, shown: Shown) -> Iterator[Finding]:
    """Findings on search.gradient = true. Sequences are shown as relaxations [B, L, V], as a search shows them."""
    if not asking.differentiable:
        advice = "differentiable = True on the class (or function.differentiable = True) if autograd can pass it"
        yield Finding("says that it has a gradient", False, "differentiable is not True", advice)
        return
    hard = _relaxed(shown, 1.0)
    if shown.letters:
        yield from _relaxation(asking, shown, hard)
    x = _relaxed(shown, INTERIOR)
    answer = asking.ask(x, shown.conditions, grad=True)
    scored, title = answer.scored, "has a gradient"
    if scored.error is not None or scored.grads is None:
        yield Finding(title, False, scored.error or "none", LEAVES, tuple(own_part(scored.trace)))
        return
    if not np.isfinite(scored.grads).all():
        yield Finding(title, False, "it is not finite", "mind sqrt, log, norm and division at 0")
        return
    largest = float(np.abs(scored.grads).max())
    yield Finding(title, True, f"largest entry {largest:.3g}")
    if not largest:
        yield Finding("the gradient leads somewhere", None, "it is zero at all samples: it can't help the search")
    yield _differences(asking, shown, x, torch.from_numpy(scored.grads))
    yield _own_sample(asking, shown, x)


def _relaxation(asking: Asking, shown: Shown, hard: Tensor) -> Iterator[Finding]:
    title = "one-hot letters are worth what tokens are"
    plain, soft = asking.ask(shown.samples, shown.conditions), asking.ask(hard, shown.conditions, grad=True)
    if soft.scored.error is not None:
        return  # told by the next check
    ok = np.allclose(plain.values, soft.values, rtol=1e-3, atol=1e-3)
    advice = "with search.gradient samples are probabilities of letters [B, L, V] float32, and tokens [B, L] without"
    yield Finding(title, ok, "" if ok else f"{soft.values[0]:.6g} and {plain.values[0]:.6g}", "" if ok else advice)


def _relaxed(shown: Shown, share: float) -> Tensor:
    """Samples with a gradient's type, `share` of the way from the middle of what is allowed."""
    if not shown.letters:
        return 0.5 + share * (shown.samples.float() - 0.5)
    return share * F.one_hot(shown.samples, shown.letters).float() + (1 - share) / shown.letters


def _direction(shown: Shown, x: Tensor) -> Tensor:
    """Random, soft over an image; of letters so that probabilities still add up to one."""
    rng = torch.Generator().manual_seed(1)
    if shown.letters:
        u = torch.rand(x.shape, generator=rng) - 0.5
        return u - u.mean(dim=2, keepdim=True)
    coarse = torch.rand((len(x), x.shape[1], 4, 4), generator=rng) * 2 - 1
    return F.interpolate(coarse, x.shape[2:], mode="bilinear")


def _differences(asking: Asking, shown: Shown, x: Tensor, grads: Tensor) -> Finding:
    """d r / d direction by autograd and by central differences, at the best of several steps for each sample."""
    title, u = "the gradient is that of the values", _direction(shown, x)
    slope = (grads.double() * u.double()).flatten(1).sum(1).numpy()
    room = np.full(len(x), -np.inf)
    nearest = np.full(len(x), np.nan)
    for step in STEPS:
        ends = [asking.ask(x + sign * step * u, shown.conditions, grad=True) for sign in (1.0, -1.0)]
        if any(end.scored.error is not None for end in ends):
            return Finding(title, False, str(ends[0].scored.error or ends[1].scored.error), LEAVES)
        there = (ends[0].values - ends[1].values) / (2 * step)
        size = np.maximum(np.abs(ends[0].values), np.abs(ends[1].values))
        allowed = NEAR * np.maximum(np.abs(there), np.abs(slope)) + ROUNDING * size / step
        left = allowed - np.abs(there - slope)
        better = ~(left <= room)
        room, nearest = np.where(better, left, room), np.where(better, there, nearest)
    i = int(np.nanargmin(room)) if not np.isnan(room).all() else 0
    if room[i] >= 0:
        return Finding(title, True, "as finite differences along a random direction")
    words = f"sample {i} ({shown.names[i]}): {slope[i]:.4g} by autograd, {nearest[i]:.4g} by finite differences"
    return Finding(title, False, words, "a step without a gradient (round, argmax, a threshold), or a detached part")


def _own_sample(asking: Asking, shown: Shown, x: Tensor) -> Finding:
    """Gradients are per sample: d r_i / d sample_j = 0."""
    title = "the gradient of a value is zero at all other samples"
    leaf = x.clone().requires_grad_()
    with torch.enable_grad():
        values = asking(leaf, shown.conditions)
        for i in range(min(3, len(x))):
            (slope,) = torch.autograd.grad(values[i], leaf, retain_graph=True, allow_unused=True)
            others = torch.zeros_like(x) if slope is None else slope.clone()
            others[i] = 0
            if bool(others.any()):
                j = int(others.flatten(1).abs().amax(1).argmax())
                return Finding(title, False, f"value {i} has one at sample {j}", ALONE)
    return Finding(title, True)
