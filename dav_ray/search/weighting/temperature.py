"""Parses `search.alpha`, the temperature of the tilt exp(r / alpha): a number, or standard deviations (`0.1 sd`).

A number is in the reward's own unit. The standard deviation is of the reward of the model that the run starts from. It
is measured once, in round 0, and the resulting number holds for the whole run (`dav_ray.runtime.measured_alpha`).
"""

from __future__ import annotations

import math
import re

from dav_ray.strict import number as typed_number

SD = re.compile(r"(\S*?)\s*sd")
ALLOWED = 'a number > 0, or one in sd, for instance "0.1 sd"'

SCHEMA = [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": r"^\s*[0-9.].*sd\s*$|\$\{"}]

Alpha = float | str  # as `parsed` gives it


def parsed(value: object) -> Alpha:
    """A positive number, or `NUMBER sd` in one way of writing. ValueError saying what is wrong."""
    text = isinstance(value, str) and SD.fullmatch(value.strip())
    number = typed_number(text[1] if text else value)
    if not 0 < number < math.inf:
        raise ValueError("out of range")
    return f"{number:.12g} sd" if text else number


def in_sd(alpha: Alpha) -> bool:
    """Whether it is so many standard deviations."""
    return isinstance(alpha, str)


def magnitude(alpha: Alpha) -> float:
    """The number as it is typed, whatever its unit."""
    return float(alpha.removesuffix("sd")) if isinstance(alpha, str) else alpha


def number(alpha: Alpha, measured: float | None = None) -> float:
    """The temperature in the reward's unit: alpha itself, or what its standard deviations came to (`measured`).
    ValueError where these are asked for and were not measured."""
    if not isinstance(alpha, str):
        return alpha
    if measured is None:
        raise ValueError(f"search.alpha = {alpha}: is no number before round 0 is evaluated")
    return measured
