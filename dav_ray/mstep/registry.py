"""The objectives of the M-step by their names, and how the configured one is made. No torch at import."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dav_ray.registry import Entry, Registry

if TYPE_CHECKING:
    from dav_ray.mstep.objective import Objective

OBJECTIVES = Registry(
    "dav_ray.objectives",
    "objective",
    {
        "weighted_nll": Entry(
            "dav_ray.mstep.objective:weighted_sum", "weighted negative log-likelihood plus lambda KL, as DAV has it"
        )
    },
)


def ships(name: str) -> bool:
    """Whether an objective is a part of dav_ray."""
    return name in OBJECTIVES.builtin


def build(name: str, args: Mapping[str, Any]) -> Objective:
    """The configured objective: an object of the class, which `args` construct, or the function, which gets them at
    every call. Raises Unregistered, or what its import raises."""
    found = OBJECTIVES.load(name)
    return found(**args) if isinstance(found, type) else functools.partial(found, **args)
