"""The torch device of an actor or a task. Imports ray alone, as rewards in an environment of their own use it too."""

from __future__ import annotations

import ray


def given_device() -> str:
    """ "cuda" where Ray gave this process a GPU, else "cpu": what it was given, not what the node has."""
    return "cuda" if ray.get_gpu_ids() else "cpu"
