"""Prompts as text, one per line, and as JSON, one object per line: JSONL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from dav_ray.config.sections.prompts import Prompts, from_rows
from dav_ray.strict import parse_json

COMMENT = "#"


def of_lines(text: str) -> Prompts:
    """Empty lines and comments are none."""
    lines = [line.strip() for line in text.splitlines()]
    kept = [line for line in lines if line and not line.startswith(COMMENT)]
    return Prompts(line.removeprefix("\\") if line.startswith(f"\\{COMMENT}") else line for line in kept)


def is_jsonl(name: str) -> bool:
    return name.endswith((".jsonl", ".ndjson"))


def of_json_lines(text: str) -> Prompts:
    """One object with `prompt` per line. ValueError naming the line that is none."""
    numbers = [number for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return from_rows(_objects(text), lambda row: f"line {numbers[row - 1]}")


def to_json_lines(prompts: Prompts) -> str:
    """What `of_json_lines` reads. It holds nothing that YAML or its references could read otherwise."""
    lines = (json.dumps(row, ensure_ascii=False).replace("${", "\\u0024{") for row in prompts.rows())
    return "".join(f"{_printable(line)}\n" for line in lines)


def _objects(text: str) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = parse_json(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f'line {number}: is no object; allowed: {{"prompt": TEXT, ...}} on each line')
            yield row


def _printable(line: str) -> str:
    """What is not printable escaped as JSON does it."""
    return "".join(c if c == " " or c.isprintable() else json.dumps(c)[1:-1] for c in line)
