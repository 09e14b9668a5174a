"""Which schedulers can be turned into DDIM, from their configuration: before a run for a folder, after the load for a
model of the hub. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
PREDICTIONS = ("epsilon", "v_prediction")
TO_THE_END = ("linspace", "trailing")  # spacings whose first step is the last one of training


def mistakes(scheduler: Mapping[str, Any]) -> Iterator[str]:
    """Why a scheduler can't be turned into DDIM, from what its scheduler_config.json says."""
    name = str(scheduler.get("_class_name", "no scheduler"))
    if name not in CONVERTIBLE:
        known = ", ".join(sorted(CONVERTIBLE))
        yield f"no stochastic DDIM step for {show(name)}; allowed: {known}"
        return
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        yield f"prediction_type {show(prediction)}; allowed: {', '.join(PREDICTIONS)}"
    if scheduler.get("thresholding", False):
        yield "the scheduler clips by thresholding; allowed: thresholding false"
    blind = scheduler.get("rescale_betas_zero_snr", False) and prediction == "epsilon"
    if blind and scheduler.get("timestep_spacing", "leading") in TO_THE_END:
        words = "rescale_betas_zero_snr leaves no signal at the first step, where epsilon says nothing of the sample"
        yield f"{words}; allowed: prediction_type v_prediction"
