"""`SanaPipeline` with tiny random weights, and what its own call draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dav_ray.diffusion.pipelines.files import as_flow
from tests.support.oracle import Recorded, recorded
from tests.support.pipelines.sana_parts import PROMPTS, begin, tiny_parts

STEPS = 4
SOLVER = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


def tiny(**options: Any) -> Any:
    from diffusers import DPMSolverMultistepScheduler, SanaPipeline

    pipe = SanaPipeline(**tiny_parts(**options), scheduler=as_flow(DPMSolverMultistepScheduler(**SOLVER)))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(height: int, width: int, guidance: float, **options: Any) -> Callable[[Any], Recorded]:
    words = {"height": height, "width": width, "guidance_scale": guidance, "num_inference_steps": STEPS, **options}
    return lambda pipe: recorded(pipe, PROMPTS, begin(height, width), use_resolution_binning=False, **words)
