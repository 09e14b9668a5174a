"""Which schedulers' steps a search can draw, from their configuration: before a run for a folder, after the load for a
model of the hub. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from dav_ray.redact import show

# Schedulers that are defined by a table of alphas_cumprod, which is all that a DDIM sampler needs.
CONVERTIBLE = {
    f"{name}Scheduler"
    for name in (
        *("DDIM", "DDPM", "PNDM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete"),
        *("KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep"),
        *("DPMSolverSDE", "DEISMultistep", "UniPCMultistep"),
    )
}
FLOWS = {"FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler"}  # whose sigmas are a rectified flow's
FLOW_SOLVERS = {"DPMSolverMultistepScheduler"}  # which can solve a flow, too: its sigmas are then FlowMatchEuler's
ANGLES = {"SCMScheduler"}  # TrigFlow: x_t = cos(a) x_0 + sin(a) eps
CONSISTENCY = {"LCMScheduler"}  # x_0 is guessed anew at each step, and noised again
PREDICTIONS = ("epsilon", "v_prediction")
TO_THE_END = ("linspace", "trailing")  # spacings whose first step is the last one of training


def mistakes(scheduler: Mapping[str, Any], allowed: Collection[str] = CONVERTIBLE) -> Iterator[str]:
    """Why a scheduler's steps can't be drawn, from what its scheduler_config.json says. allowed: the classes that the
    pipeline may have."""
    name = str(scheduler.get("_class_name", "no scheduler"))
    if name not in allowed:
        what = "DDIM step" if CONVERTIBLE.issuperset(allowed) else "step"
        yield f"no stochastic {what} for {show(name)}; allowed: {', '.join(sorted(allowed))}"
        return
    if name in FLOWS:
        if scheduler.get("invert_sigmas", False):
            yield "the scheduler inverts its sigmas; allowed: invert_sigmas false"
        return
    if name in ANGLES:
        return
    prediction = scheduler.get("prediction_type", "epsilon")
    if not FLOWS.isdisjoint(allowed):
        if prediction != "flow_prediction" or not scheduler.get("use_flow_sigmas", False):
            yield f"prediction_type {show(prediction)}; allowed: flow_prediction with use_flow_sigmas true"
        return
    if name in CONSISTENCY and scheduler.get("clip_sample", False):
        yield "the scheduler clips its guesses; allowed: clip_sample false"
    if prediction not in PREDICTIONS:
        yield f"prediction_type {show(prediction)}; allowed: {', '.join(PREDICTIONS)}"
    if scheduler.get("thresholding", False):
        yield "the scheduler clips by thresholding; allowed: thresholding false"
    blind = scheduler.get("rescale_betas_zero_snr", False) and prediction == "epsilon"
    if blind and scheduler.get("timestep_spacing", "leading") in TO_THE_END:
        words = "rescale_betas_zero_snr leaves no signal at the first step, where epsilon says nothing of the sample"
        yield f"{words}; allowed: prediction_type v_prediction"
