"""The pipeline's own `__call__` as the oracle of an adapter: what its network says at each step, and its pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dav_ray.config.build import build
from dav_ray.config.checks.preflight import model_mistakes
from dav_ray.config.families.table import family_of
from dav_ray.config.schema import Config
from dav_ray.diffusion.pipelines.latents import LatentModel
from dav_ray.diffusion.pipelines.unconditional import Unconditional


@dataclass(frozen=True)
class Recorded:
    """One run of the pipeline: the states that its scheduler was given, the guided outputs, and the images."""

    states: list[Tensor]
    outputs: list[Tensor]
    images: Tensor


def recorded(pipe: Any, prompts: Sequence[str], start: Tensor, **words: Any) -> Recorded:
    """The pipeline from the latents `start`, with its own scheduler; words: further arguments of its call."""
    return watched(pipe, prompt=list(prompts), latents=start.clone(), **words)


def watched(pipe: Any, **words: Any) -> Recorded:
    """The pipeline's call with these arguments, and with its own scheduler."""
    states: list[Tensor] = []
    outputs: list[Tensor] = []
    step = pipe.scheduler.step
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()  # as loaded ones are

    @wraps(step)  # pipelines look at what it takes
    def record(output: Tensor, t: Any, sample: Tensor, *rest: Any, **options: Any) -> Any:
        states.append(sample.clone())
        outputs.append(output.clone())
        return step(output, t, sample, *rest, **options)

    pipe.scheduler.step = record
    try:
        images = pipe(output_type="pt", **words).images
    finally:
        pipe.scheduler.step = step
    return Recorded(states, outputs, images)


def differences(
    model: LatentModel | Unconditional,
    oracle: Recorded,
    prompts: Sequence[str],
    start: Tensor,
    read: Callable[[Tensor], Tensor] = lambda output: output,
    noise: torch.Generator | None = None,
) -> tuple[float, float, float]:
    """The largest difference of the guided outputs at the oracle's own states; of the pictures at the end of the
    adapter's own steps; of the states that they begin with. read: what the oracle's output is in the adapter's terms;
    noise: what the steps draw from, seeded as the pipeline's generator was. Without it they must draw nothing
    (eta = 0)."""
    steps, output = model.steps, 0.0
    x = start
    for index, (state, said) in enumerate(zip(oracle.states, oracle.outputs, strict=True)):
        t = torch.full((len(prompts),), steps - index)
        with torch.no_grad():
            output = max(output, _apart(model._evaluate(model.called(reference=False), state, t, prompts), read(said)))
            kernel = model.predict(x, steps - index, prompts).kernel
        x = kernel.mean
        if noise is None:
            assert kernel.deterministic
        else:
            x = x + kernel.std * torch.randn(x.shape, generator=noise)
    images = model.decode(x, prompts)
    return output, _apart(images, oracle.images), float((oracle.states[0] - start).abs().max())


def lora_round_trip(
    model_of: Callable[[Any], LatentModel],
    pipe_of: Callable[[], Any],
    draw: Callable[[Any], Recorded],
    targets: Sequence[str],
    prompts: Sequence[str],
    start: Tensor,
    folder: Path,
    noise: torch.Generator | None = None,
) -> tuple[float, float]:
    """The largest difference between the pictures of an adapter whose LoRA layers are not zero and those of a pipeline
    that has loaded what the adapter wrote; between the pictures with and without these layers. model_of: the adapter of
    a pipeline; pipe_of: the same pipeline, anew; draw: what `recorded` says of one; noise: as `differences`. A second
    adapter that takes the file's parameters has to be the first."""
    model = model_of(pipe_of())
    model.add_adapters(4, 2.0, targets, 0)
    generator = torch.Generator().manual_seed(7)
    moved = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in model.policy_state().items()
    }
    model.load_policy_state(moved)
    model.write_policy(folder)
    pipe = pipe_of()
    before = draw(pipe)
    pipe.load_lora_weights(str(folder))
    after = draw(pipe)
    _, apart, _ = differences(model, after, prompts, start, noise=noise)

    stored = load_file(folder / model.policy_file)
    second = model_of(pipe_of())
    second.add_adapters(4, 2.0, targets, 1)
    second.load_policy_state({name.removeprefix(model.policy_prefix): tensor for name, tensor in stored.items()})
    assert second.policy_state().keys() == moved.keys()
    assert all(torch.equal(tensor, moved[name]) for name, tensor in second.policy_state().items())
    return apart, _apart(after.images, before.images)


def of_recipe(
    pipe: Any, folder: Path, prompts: Sequence[str], *, search: Mapping[str, Any], **keys: Any
) -> LatentModel:
    """What a recipe with the pipeline's folder builds; it has no mistakes. keys: of its section `model`."""
    pipe.save_pretrained(folder)
    sections = {"model": {"path": str(folder), **keys}, "prompts": list(prompts), "reward": {"kind": "brightness"}}
    config = Config.model_validate({**sections, "search": search})
    assert not (found := list(model_mistakes(config))), found
    model: Any = build(config)
    return model


def own_side(folder: Path) -> int:
    """Of the images of the pipeline in this folder, in pixels, where a recipe gives no size."""
    sections = {"model": {"path": str(folder)}, "prompts": ["a"], "reward": {"kind": "brightness"}}
    config = Config.model_validate(sections)
    family: Any = family_of(config.model)
    return family.own_side(config)


def gradient_is_finite(model: LatentModel | Unconditional, prompts: Sequence[str]) -> bool:
    """Whether the brightness of what is decoded from the guess at each step has a gradient at that step's state that is
    finite and not zero, for each prompt."""
    for t in range(model.steps, 0, -1):
        x = torch.randn((len(prompts), *model.event_shape), generator=torch.Generator().manual_seed(t))
        x = model.relax(x).requires_grad_()
        images = model.decode(model.predict(x, t, prompts).x0_hat, prompts, t)
        (slope,) = torch.autograd.grad(images.sum(), x)
        slope = slope.flatten(1)
        if not (slope.isfinite().all() and (slope.abs().amax(1) > 0).all()):
            return False
    return True


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).abs().max())
