"""dav_ray: align diffusion models with a reward, by variational EM on a Ray cluster (DAV, arXiv 2510.00502)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dav_ray import moved

if TYPE_CHECKING:
    from dav_ray.api import load as load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

moved.install()


def __getattr__(name: str) -> Any:
    # torch and diffusers take seconds to import: only who asks for `load` pays for them.
    if name == "load":
        from dav_ray.api import load

        return load
    raise AttributeError(f"module 'dav_ray' has no attribute {name!r}")
