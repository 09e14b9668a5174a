"""The objectives of the M-step. There is one; what fits a round asks for it here."""

from __future__ import annotations

from dav_ray.registry import Entry, Registry

OBJECTIVES = Registry(
    "dav_ray.objectives",
    "objective",
    {
        "weighted_nll": Entry(
            "dav_ray.mstep.objective:weighted_sum", "weighted negative log-likelihood plus lambda KL, as DAV has it"
        )
    },
)
