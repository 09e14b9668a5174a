"""Whether the trackers that a configuration names are installed."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from dav_ray.config.schema import Track

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow-skinny"}  # what pip installs, by module


def tracker_mistakes(config: Track) -> Iterator[str]:
    """One line per tracker that is not installed; nothing is imported."""
    for kind in config.kinds:
        if find_spec(kind) is None:
            yield f"track.kinds = {kind}: is not installed; allowed: without it, or after: pip install {PACKAGES[kind]}"
