"""What counts as one and the same setting where runs are compared, however it was stored."""

from __future__ import annotations

import re
from typing import Any

# what earlier releases stored for keys that were not given, and what says the same as today's default
FORMER_DEFAULTS: dict[str, Any] = {
    "model.alphabet": "dna",
    "mstep.lora.targets": ["to_q", "to_k", "to_v", "to_out.0"],
}

# Ray unpacks what a job brings along into a folder of this name, another one for every content
_UNPACKED = re.compile(r"/.*/working_dir_files/[^/]+/(.*)", re.DOTALL)


def former_default(key: str, value: Any) -> bool:
    """Whether this is what an earlier release had as the (dotted) key's default."""
    return key in FORMER_DEFAULTS and value == FORMER_DEFAULTS[key]


def unpacked(value: Any) -> Any:
    """A path in a job's copy of its working directory is known by its place in there; anything else is as it is."""
    inside = _UNPACKED.fullmatch(value) if isinstance(value, str) else None
    return inside[1] if inside else value
