"""`SanaSprintPipeline` with tiny random weights, and what its own call draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.support.oracle import Recorded, recorded
from tests.support.pipelines.sana_parts import PROMPTS, begin, tiny_parts

SPREAD, SEED = 0.5, 3  # sigma_data


def tiny() -> Any:
    from diffusers import SanaSprintPipeline, SCMScheduler

    parts = tiny_parts(guidance_embeds=True, qk_norm="rms_norm_across_heads")
    pipe = SanaSprintPipeline(**parts, scheduler=SCMScheduler(sigma_data=SPREAD))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(steps: int, guidance: float, height: int, width: int) -> Callable[[Any], Recorded]:
    """What the pipeline draws, its outputs read as velocities. It says F = -sin(a) x_0 + cos(a) eps of states and
    outputs times sigma_data."""

    def draw(pipe: Any) -> Recorded:
        words: dict[str, Any] = {"height": height, "width": width, "guidance_scale": guidance}
        middle = {"num_inference_steps": steps, "intermediate_timesteps": 1.3 if steps == 2 else None}
        words |= {"use_resolution_binning": False, "generator": seeded(), **middle}
        found = recorded(pipe, PROMPTS, begin(height, width), **words)
        states = [state / SPREAD for state in found.states]
        angles = pipe.scheduler.timesteps[:-1]
        outputs = [velocity(x, f / SPREAD, a) for x, f, a in zip(states, found.outputs, angles, strict=True)]
        return Recorded(states, outputs, found.images)

    return draw


def velocity(x: Tensor, f: Tensor, angle: Tensor) -> Tensor:
    """eps - x_0, where x = cos(a) x_0 + sin(a) eps and f = cos(a) eps - sin(a) x_0."""
    return (angle.sin() * x + angle.cos() * f) - (angle.cos() * x - angle.sin() * f)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)
