"""Versions of the libraries that a run's results depend on."""

from __future__ import annotations

import importlib.metadata
import sys

LIBRARIES = ("ray", "torch", "diffusers", "transformers", "peft", "numpy", "pyarrow")


def library_versions() -> dict[str, str]:
    """By name, this package's and Python's first."""
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"dav_ray": own_version(), "python": sys.version.split()[0], **found}


def own_version() -> str:
    """Of this package as it is imported: a job's copy need not be installed."""
    from dav_ray import __version__

    return __version__
