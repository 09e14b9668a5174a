"""The pipeline's own `__call__` as the oracle of an adapter: what its network says at each step, and its pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
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
    for index, (state, said) in enumerate(zip(oracle.states, oracle.outputs, strict=True)):
        t = torch.full((len(prompts),), steps - index)
        with torch.no_grad():
            output = max(output, _apart(model._evaluate(model.called(reference=False), state, t, prompts), read(said)))
        assert model.deterministic(steps - index)
    images = drawn(model, prompts, start)
    return output, _apart(images, oracle.images), float((oracle.states[0] - start).abs().max())


@torch.no_grad()
def drawn(model: LatentModel, prompts: Sequence[str], start: Tensor) -> Tensor:
    """The adapter's images at the end of its own steps, which must draw nothing (eta = 0)."""
    x = start
    for t in range(model.steps, 0, -1):
        x = model.predict(x, t, prompts).kernel.mean
    return model.decode(x, prompts)


@dataclass(frozen=True)
class RoundTrip:
    """The largest differences of images: of the adapted model to the pretrained one, of the pipeline with these
    adapters to the adapted model, and of another model that was given the adapters' state."""

    moved: float
    loaded: float
    restored: float


def lora_round_trip(
    model_of: Callable[[Any], LatentModel],
    pipe_of: Callable[[], Any],
    draw: Callable[[Any], Tensor],
    prompts: Sequence[str],
    start: Tensor,
    targets: Sequence[str],
    folder: Path,
) -> RoundTrip:
    """Adapters that are not zero, by `write_policy` into a pipeline's `load_lora_weights`, and by `load_policy_state`
    into another model. pipe_of: the same weights each time; model_of: a model of it that draws nothing (eta = 0);
    draw: the pipeline's own images from `start`."""

    def adapted() -> LatentModel:
        model = model_of(pipe_of())
        model.add_adapters(4, 6.0, targets, seed=0)
        return model

    model, generator = adapted(), torch.Generator().manual_seed(5)
    plain = drawn(model, prompts, start)
    with torch.no_grad():
        for parameter in model.trainable().parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    model.write_policy(folder)
    images = drawn(model, prompts, start)
    pipe = pipe_of()
    pipe.load_lora_weights(str(folder))
    other, file = adapted(), load_file(folder / model.policy_file)
    other.load_policy_state({name.removeprefix(model.policy_prefix): tensor for name, tensor in file.items()})
    return RoundTrip(_apart(images, plain), _apart(images, draw(pipe)), _apart(images, drawn(other, prompts, start)))


def gradient_is_finite(model: LatentModel, prompts: Sequence[str], start: Tensor) -> bool:
    """Whether the brightness of the decoded guess has a finite gradient, not zero, in each noisy state."""
    x = model.relax(start).clone().requires_grad_()
    images = model.decode(model.predict(x, model.steps - 1, prompts).x0_hat, prompts, model.steps - 1)
    (found,) = torch.autograd.grad(images.mean(), x)
    return bool(found.isfinite().all()) and bool((found.flatten(1).abs().amax(1) > 0).all())


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).abs().max())
