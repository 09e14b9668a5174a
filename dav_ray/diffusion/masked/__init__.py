"""Masked discrete diffusion (MDLM, arXiv 2406.07524): sequences over any alphabet. `MaskedDiffusion` is the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dav_ray.diffusion.masked.model import MaskedDiffusion as MaskedDiffusion

__all__ = ["MaskedDiffusion"]


def __getattr__(name: str) -> Any:
    if name == "MaskedDiffusion":  # lazily: alphabets and conditions need no torch
        from dav_ray.diffusion.masked.model import MaskedDiffusion

        return MaskedDiffusion
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
