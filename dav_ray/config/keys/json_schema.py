"""A JSON schema of recipes, with which editors complete keys and mark mistakes while one is typed."""

from __future__ import annotations

from typing import Any

from dav_ray.config.families.table import usable
from dav_ray.config.schema import Config
from dav_ray.mstep.registry import OBJECTIVES
from dav_ray.search.kinds import SEARCHES

TITLE = "a recipe of dav_ray"
REFERENCE = {"type": "string", "pattern": r"\$\{.+\}", "description": "a reference, ${...}"}
PLAIN = ("integer", "number", "boolean")


def recipe_schema() -> dict[str, Any]:
    """What is allowed in a recipe, key by key; rules about several keys are `dav-ray run --dry-run`'s."""
    plain = Config.model_json_schema()
    tables = (("Search", "kind", [*SEARCHES]), ("Model", "kind", usable()), ("MStep", "objective", [*OBJECTIVES]))
    for section, key, names in tables:  # those of other packages too
        named = plain["$defs"][section]["properties"][key]
        named["anyOf"] = [{"enum": names}, *named["anyOf"][1:]]
    schema = _with_references(plain)
    properties = schema["properties"]
    properties["reward"] = _one_or_many(properties["reward"])
    properties["prompts"] = _prompts(properties["prompts"]["description"])
    schema["required"] = [key for key in schema["required"] if key != "prompts"]  # a masked model needs none
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": TITLE}


def _prompts(description: str) -> dict[str, Any]:
    row = {"type": "object", "properties": {"prompt": {"type": "string"}}, "required": ["prompt"]}
    row["properties"] |= {"weight": {"type": "number", "exclusiveMinimum": 0}}
    template = {"type": "object", "properties": {"template": {"type": "string"}}, "required": ["template"]}
    template |= {"additionalProperties": {"type": "array", "minItems": 1}}
    ways = [
        {"type": "string", "description": "a file, or a folder of a table"},
        {"type": "array", "items": {"anyOf": [{"type": "string"}, row]}, "minItems": 1},
        template,
    ]
    return {"description": description, "anyOf": ways}


def _one_or_many(listed: dict[str, Any]) -> dict[str, Any]:
    """The configuration has a list; a lone entry may be typed by itself."""
    return {"description": listed["description"], "anyOf": [listed["items"], {**listed, "minItems": 1}]}


def _with_references(node: Any) -> Any:
    """The schema with a reference allowed where a number, a truth value, a choice, a list or a section is."""
    if isinstance(node, list):
        return [_with_references(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    node = {key: _with_references(value) for key, value in node.items()}
    if node.get("type") in PLAIN or "enum" in node:
        about = {key: node.pop(key) for key in ("description", "default", "title") if key in node}
        return {**about, "anyOf": [node, REFERENCE]}
    return node
