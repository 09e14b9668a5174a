"""A text file of prompts, one per line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dav_ray.config.keys.describe import allowed
from dav_ray.config.recipe.typed_yaml import Mistakes
from dav_ray.redact import PATH, show

MOST_BYTES, MOST_PROMPTS = 64_000_000, 50_000
COMMENT = "#"


def read_prompts(name: str, folders: Sequence[Path], mistakes: Mistakes) -> list[str]:
    """The prompts of a file, which is looked up in these folders; empty lines and comments are none."""
    places = [folder / os.path.expanduser(name) for folder in folders]
    found = [place for place in places if os.path.isfile(place)]
    start = f"prompts = {show(name, PATH)}: "
    if not found:
        mistakes["prompts"] = f"{start}no such file; allowed: {allowed('prompts')}"
        return []
    try:
        if found[0].stat().st_size > MOST_BYTES:
            mistakes["prompts"] = f"{start}{found[0].stat().st_size:,} bytes; allowed: at most {MOST_BYTES:,}"
            return []
        prompts = _prompts(found[0].read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.reason
        mistakes["prompts"] = f"{start}can't be read as text: {reason}"
        return []
    if not prompts:
        mistakes["prompts"] = f"{start}the file is empty; allowed: one prompt per line"
    if len(prompts) > MOST_PROMPTS:
        mistakes["prompts"] = f"{start}{len(prompts):,} prompts; allowed: at most {MOST_PROMPTS:,}"
        return []
    return prompts


def _prompts(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines()]
    kept = [line for line in lines if line and not line.startswith(COMMENT)]
    return [line.removeprefix("\\") if line.startswith(f"\\{COMMENT}") else line for line in kept]
