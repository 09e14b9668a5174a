"""Reading what anyone may have written: JSON of strangers, and the sections of a configuration. No torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

WORDS = {int: "a whole number", float: "a number", str: "text", list: "a list", dict: "an object"}


def parse_json(data: bytes | str) -> Any:
    """ValueError for what is no JSON, no text, or nested too deeply."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("is no text") from None
    except ValueError as error:
        raise ValueError(f"is no JSON: {error}") from None


def parse_object(data: bytes | str) -> dict[str, Any]:
    """The same, and ValueError for anything but an object."""
    found = parse_json(data)
    if not isinstance(found, dict):
        raise ValueError("is no JSON object")
    return found


def checked_fields(found: Any, kinds: Mapping[str, type], optional: Collection[str] = ()) -> dict[str, Any]:
    """An object with exactly these keys, of these types; whole numbers are >= 0. ValueError naming the first that is
    not so."""
    if not isinstance(found, dict):
        raise ValueError("is no JSON object")
    if unknown := sorted(found.keys() - kinds.keys()):
        raise ValueError(
            f"has {unknown[0][:60]}, of which this release knows nothing: a newer dav_ray may have written it"
        )
    for name, kind in kinds.items():
        value: Any = found.get(name)
        if (name in found or name not in optional) and (type(value) is not kind or kind is int and value < 0):
            raise ValueError(f"has no {name} ({WORDS[kind]})")
    return dict(found)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_number(cls, value: Any, info: ValidationInfo) -> Any:
        """`candidates: yes` is a mistake, not the number 1. Raises ValueError."""
        if isinstance(value, bool) and info.field_name and cls.model_fields[info.field_name].annotation in (int, float):
            raise ValueError("wrong type")
        return value


def number(value: object) -> float:
    """What is typed as a number: YAML takes 1e-1 and nan for texts. ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("wrong type")
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise ValueError("wrong type") from None
