"""When a pipeline's text encoders leave memory, and how networks do. Imports no torch: estimates of memory ask too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

ENCODER = "text_encoder"  # how the names of encoders in pipelines begin
MOST_EMBEDDED = 512  # texts that are embedded at once; of more the encoders stay


def drop(modules: Sequence[Any]) -> None:
    """Give the memory of their weights back. What the modules say of themselves stays."""
    from dav_ray.diffusion.device import free_memory

    for module in modules:
        module.to("meta")
    free_memory()
