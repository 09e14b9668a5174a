"""The pipeline's own `__call__` as the oracle of an adapter: what its network says at each step, and its pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dav_ray.diffusion.pipelines.latents import LatentModel


@dataclass(frozen=True)
class Recorded:
    """One run of the pipeline: the states that its scheduler was given, the guided outputs, and the images."""

    states: list[Tensor]
    outputs: list[Tensor]
    images: Tensor


def recorded(pipe: Any, prompts: Sequence[str], start: Tensor, **words: Any) -> Recorded:
    """The pipeline from the latents `start`, with its own scheduler; words: further arguments of its call."""
    states: list[Tensor] = []
    outputs: list[Tensor] = []
    step = pipe.scheduler.step
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()  # as loaded ones are

    def record(output: Tensor, t: Any, sample: Tensor, *rest: Any, **options: Any) -> Any:
        states.append(sample.clone())
        outputs.append(output.clone())
        return step(output, t, sample, *rest, **options)

    pipe.scheduler.step = record
    try:
        images = pipe(prompt=list(prompts), latents=start.clone(), output_type="pt", **words).images
    finally:
        pipe.scheduler.step = step
    return Recorded(states, outputs, images)


def differences(
    model: LatentModel,
    oracle: Recorded,
    prompts: Sequence[str],
    start: Tensor,
    read: Callable[[Tensor], Tensor] = lambda output: output,
) -> tuple[float, float, float]:
    """The largest difference of the guided outputs at the oracle's own states; of the pictures at the end of the
    adapter's own steps, which must draw nothing (eta = 0); of the states that they begin with. read: what the oracle's
    output is in the adapter's terms."""
    steps, output = model.steps, 0.0
    x = start
    for index, (state, said) in enumerate(zip(oracle.states, oracle.outputs, strict=True)):
        t = torch.full((len(prompts),), steps - index)
        with torch.no_grad():
            output = max(output, _apart(model._evaluate(model.called(reference=False), state, t, prompts), read(said)))
            kernel = model.predict(x, steps - index, prompts).kernel
        assert kernel.deterministic
        x = kernel.mean
    images = model.decode(x, prompts)
    return output, _apart(images, oracle.images), float((oracle.states[0] - start).abs().max())


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).abs().max())
