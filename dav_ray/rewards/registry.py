"""The rewards that ship with dav_ray: name -> module:Class. A name with a colon is a user's own class or function."""

from __future__ import annotations

from typing import Any

from dav_ray.own_targets import load
from dav_ray.rewards.function import FunctionReward

BUILTIN: dict[str, str] = {
    "jpeg_compressibility": "dav_ray.rewards.jpeg:JpegCompressibility",
    "jpeg_incompressibility": "dav_ray.rewards.jpeg:JpegIncompressibility",
    "brightness": "dav_ray.rewards.colour:Brightness",
    "target_colour": "dav_ray.rewards.colour:TargetColour",
    "digit_legibility": "dav_ray.rewards.digits:DigitLegibility",
    "torch_oracle": "dav_ray.rewards.oracle:TorchOracle",
    "enformer": "dav_ray.rewards.enformer:Enformer",
    "gc_content": "dav_ray.rewards.sequence:GcContent",
    "gc_window": "dav_ray.rewards.sequence:GcWindow",
    "motif_score": "dav_ray.rewards.sequence:MotifScore",
    "product": "dav_ray.rewards.combine:Product",
    "ehrlich": "dav_ray.rewards.ehrlich:Ehrlich",
}

# those that score sequences, not images
SEQUENCES = frozenset({"torch_oracle", "enformer", "gc_content", "gc_window", "motif_score", "ehrlich"})

# the argument of a built-in reward that names a file it reads
FILES: dict[str, str] = {"enformer": "checkpoint", "torch_oracle": "weights"}


def build(kind: str, args: dict[str, Any], device: str = "cpu") -> Any:
    """A reward; on the device where it can be placed, which is what `place_on` is for."""
    reward = make(kind, args)
    if hasattr(reward, "place_on"):
        reward.place_on(device)
    return reward


def make(kind: str, args: dict[str, Any]) -> Any:
    """A reward where it is built: a class with its arguments, or a function, which gets them at each call."""
    found = resolve(kind)
    return found(**args) if isinstance(found, type) else FunctionReward(found, args)


def features(target: str) -> Any:
    """Features of the user's own: an object of the class, or the function."""
    found = resolve(target)
    return found() if isinstance(found, type) else found


def resolve(kind: str) -> Any:
    """The class or function of a reward. KeyError: unknown name; else what the import raised."""
    return load(kind if ":" in kind else BUILTIN[kind])
