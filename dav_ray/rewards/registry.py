"""The rewards that ship with dav_ray: name -> module:Class. A name with a colon is a user's own class."""

from __future__ import annotations

import importlib
from typing import Any

BUILTIN: dict[str, str] = {
    "jpeg_compressibility": "dav_ray.rewards.jpeg:JpegCompressibility",
    "jpeg_incompressibility": "dav_ray.rewards.jpeg:JpegIncompressibility",
    "brightness": "dav_ray.rewards.colour:Brightness",
    "target_colour": "dav_ray.rewards.colour:TargetColour",
    "digit_legibility": "dav_ray.rewards.digits:DigitLegibility",
}


def resolve(kind: str) -> Any:
    """The class of a reward. KeyError: unknown name; ImportError or AttributeError: what the import raised."""
    module, _, name = (kind if ":" in kind else BUILTIN[kind]).partition(":")
    return getattr(importlib.import_module(module), name)
