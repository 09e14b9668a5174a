"""What a recipe says of prompts: a list, a file or a folder of them, or a template."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dav_ray.config.keys.describe import allowed
from dav_ray.config.recipe.prompt_sources.lines import is_jsonl, of_json_lines, of_lines
from dav_ray.config.recipe.prompt_sources.template import of_template
from dav_ray.config.recipe.typed_yaml import Mistakes
from dav_ray.config.sections.prompts import MOST_BYTES, MOST_PROMPTS, Prompts
from dav_ray.redact import PATH, show

KEY = "prompts"


def read_prompts(given: Any, folders: Sequence[Path], mistakes: Mistakes) -> Any:
    """The prompts; what is no file and no template as it is, for the configuration to look at.

    folders: where a relative path is looked up, first things first.
    """
    if isinstance(given, str):
        start, read = f"{KEY} = {show(given, PATH)}: ", lambda: _of_text(given, folders)
    elif isinstance(given, dict):
        start, read = f"{KEY}.", lambda: of_template(given)
    else:
        return given
    try:
        found = read()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.reason
        mistakes[KEY] = f"{start}can't be read{' as text' if isinstance(given, str) else ''}: {reason}"
    except ValueError as error:
        mistakes[KEY] = f"{start}{error}"
    else:
        return found
    return Prompts()


def _of_text(text: str, folders: Sequence[Path]) -> Prompts:
    """ValueError, OSError: why there are none."""
    if text.startswith("{"):  # as `config.yaml` has those that are more than texts
        return of_json_lines(text)
    if text.startswith("hf://"):
        raise ValueError("data sets of the hub are not downloaded; allowed: Parquet, or a folder of save_to_disk")
    places = [folder / os.path.expanduser(text) for folder in folders]
    found = next((place for place in places if os.path.exists(place)), None)
    if found is None or not (found.is_file() or found.is_dir()):
        raise ValueError(f"no such file; allowed: {allowed(KEY)}")
    prompts = _of_place(found)
    if len(prompts) > MOST_PROMPTS:
        raise ValueError(f"{len(prompts):,} prompts; allowed: at most {MOST_PROMPTS:,}")
    return prompts


def _of_place(found: Path) -> Prompts:
    if found.is_dir() or found.suffix in (".parquet", ".arrow"):
        from dav_ray.config.recipe.prompt_sources.tables import of_tables

        return of_tables(found)
    if found.stat().st_size > MOST_BYTES:
        raise ValueError(f"{found.stat().st_size:,} bytes; allowed: at most {MOST_BYTES:,}")
    text = found.read_text(encoding="utf-8-sig")
    prompts = of_json_lines(text) if is_jsonl(found.name) else of_lines(text)
    if not prompts:
        raise ValueError("the file is empty; allowed: one prompt per line")
    return prompts
