"""From a recipe and overrides to a checked configuration, every mistake worded as one line for the user.

A recipe is YAML with OmegaConf's `${...}` references. What is stored in a run directory (`Recipe.yaml`) has
every default filled in but keeps the references as typed, so that no secret of the environment lands on disk.
Nothing here imports torch or ray: a mistake must not cost their seconds.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from dav_ray.batches import Batches
from dav_ray.config import Config
from dav_ray.errors import UserError
from dav_ray.keys import PATH, allowed, field_of, is_key, nearest_key, required_below, show
from dav_ray.roles import may_change
from dav_ray.secrets import hide
from dav_ray.tree import Mistakes, Tree, assign, escaped, parse, resolved

SHIPPED = Path(__file__).parent / "recipes"
MOST_BYTES, MOST_PROMPTS = 64_000_000, 50_000  # of a recipe or a file of prompts

_OUT_OF_RANGE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")
_WHAT = {
    **dict.fromkeys(_OUT_OF_RANGE, "out of range"),
    **dict.fromkeys(("string_pattern_mismatch", "too_short"), "not allowed"),
    "literal_error": "unknown value",
}


@dataclass(frozen=True)
class Recipe:
    """A configuration as it runs (`config`: references resolved) and is stored (`yaml`: as typed)."""

    name: str
    config: Config
    yaml: str


def load(recipe: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe (YAML path or the bare name of a shipped one) and apply `key.sub=value` overrides.

    Raises UserError with all mistakes found.
    """
    path, text = source(recipe)
    mistakes: Mistakes = {}
    tree = parse(text, str(path))
    for override in overrides:
        try:
            assign(tree, override)
        except ValueError as error:
            mistakes[override] = f"{show(override)}: {error}"
    return _build(path.stem, tree, path.parent, mistakes)


def from_yaml(text: str, where: str) -> Recipe:
    """The recipe that a run directory's `config.yaml` holds. Raises UserError with all mistakes found."""
    return _build(Path(where).parent.name, parse(text, where), Path("."), {})


def with_batches(recipe: Recipe, batches: Batches) -> Recipe:
    """The recipe with these sizes in place of what it has for them; references elsewhere stay as typed. UserError where
    a whole section is a reference."""
    tree = parse(recipe.yaml, recipe.name)
    for key, size in batches.by_key().items():
        try:
            assign(tree, f"{key}={size}")
        except ValueError as error:
            raise UserError(
                f"batches = probed: {key}: {error}; allowed: keys written out, or batches = given"
            ) from None
    return _build(recipe.name, tree, Path("."), {})


def source(recipe: str) -> tuple[Path, str]:
    """Where a recipe lies, and its text. Raises UserError if there is none, or it can't be read."""
    path = _find(recipe)
    return path, _read(path)


def shipped() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def differing_keys(stored: str, given: str, where: str = "config.yaml", *, free: Collection[str] = ()) -> list[str]:
    """One line per key that differs between two stored configurations, with both values.

    Keys that may change when a run is continued (`roles.may_change`) and those of `free` are left out. A key of which a
    release that stored one of them knew nothing counts as its default. Raises UserError naming `where` if that is no
    YAML.
    """
    old, new = dict(_flat(parse(stored, where))), dict(_flat(parse(given, "the recipe")))
    absent = object()
    lines = []
    for key in [*new, *(key for key in old if key not in new)]:
        field = field_of(key)
        default = field.default if field and isinstance(field.default, str | int | float | None) else absent
        was, now = (values.get(key, default) for values in (old, new))
        if was != now and key not in free and not may_change(key):
            words = ["not set" if value is absent else show(value) for value in (was, now)]
            lines.append(f"{key}: was {words[0]}, now {words[1]}")
    return lines


def _find(recipe: str) -> Path:
    names = shipped()
    if recipe in names:
        return SHIPPED / f"{recipe}.yaml"
    path = Path(os.path.expanduser(recipe))
    if os.path.isfile(path):
        return path
    if os.path.isdir(path):
        raise UserError(f"recipe {recipe}: is a folder; allowed: a YAML file, or a shipped recipe ({', '.join(names)})")
    close = difflib.get_close_matches(path.stem, names, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UserError(f"recipe {show(recipe, PATH)}: no such file; shipped recipes: {', '.join(names)}{hint}")


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path}: {path.stat().st_size:,} bytes; allowed: at most {MOST_BYTES:,}")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: can't be read as text: {_reason(error)}") from None


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return str(error.strerror if isinstance(error, OSError) else error.reason)


def _build(name: str, typed: Tree, folder: Path, mistakes: Mistakes) -> Recipe:
    tree = resolved(typed, mistakes)
    if isinstance(tree.get("prompts"), str):
        typed = {key: value for key, value in typed.items() if key != "prompts"}  # the prompts are stored, not the path
        tree["prompts"] = _read_prompts(tree["prompts"], folder, mistakes)
    config = _validated(tree, mistakes)
    if config is not None:
        mistakes |= {line: line for line in _secret_mistakes(config)}
    if config is None or mistakes:
        raise UserError(list(mistakes.values()))
    if isinstance(typed.get("reward"), dict):
        typed = {**typed, "reward": [typed["reward"]]}
    stored = OmegaConf.to_yaml(OmegaConf.create(_as_typed(config.model_dump(mode="json"), typed)))
    return Recipe(name, config, stored)


def _read_prompts(name: str, folder: Path, mistakes: Mistakes) -> list[str]:
    """The lines of a prompts file, looked up beside the recipe and then here."""
    places = [folder / os.path.expanduser(name), Path(os.path.expanduser(name))]
    found = [place for place in places if os.path.isfile(place)]
    start = f"prompts = {show(name, PATH)}: "
    if not found:
        mistakes["prompts"] = f"{start}no such file; allowed: {allowed('prompts')}"
        return []
    try:
        if found[0].stat().st_size > MOST_BYTES:
            mistakes["prompts"] = f"{start}{found[0].stat().st_size:,} bytes; allowed: at most {MOST_BYTES:,}"
            return []
        lines = [line.strip() for line in found[0].read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        mistakes["prompts"] = f"{start}can't be read as text: {_reason(error)}"
        return []
    if not lines:
        mistakes["prompts"] = f"{start}the file is empty; allowed: one prompt per line"
    if len(lines) > MOST_PROMPTS:
        mistakes["prompts"] = f"{start}{len(lines):,} prompts; allowed: at most {MOST_PROMPTS:,}"
        return []
    return lines


def _secret_mistakes(config: Config) -> Iterator[str]:
    """What of the environment would be stored with the samples, or shown in metrics."""
    shown = {f"prompts[{i}]": prompt for i, prompt in enumerate(config.prompts)}
    shown |= {f"reward[{i}].name": reward.label for i, reward in enumerate(config.reward)}
    shown |= {f"evaluate.heldout[{i}].name": reward.label for i, reward in enumerate(config.evaluate.heldout)}
    for key, text in shown.items():
        if hide(text) != text:
            yield f"{key} = {show(text)}: of the environment, and would be stored with the samples; allowed: plain text"


def _validated(tree: Tree, mistakes: Mistakes) -> Config | None:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            for key, line in _lines(detail, tree):
                mistakes.setdefault(key, line)
    return None


def _lines(error: ErrorDetails, tree: Tree) -> Iterator[tuple[str, str]]:
    """One validation error as lines, each with the key that it is about."""
    kind, path = error["type"], _path(error, tree)
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    cause = str(error.get("ctx", {}).get("error", ""))
    if kind == "missing":
        yield from ((name, f"{name}: missing; allowed: {allowed(name)}") for name in required_below(key))
    elif kind in ("extra_forbidden", "invalid_key") and isinstance(path[-1], str) and is_key(path[-1]):
        section, _, rest = path[-1].partition(".")
        yield key, f"{show(key)}: a key with a dot in it; allowed: {section}: {{{rest}: ...}}"
    elif kind in ("extra_forbidden", "invalid_key"):
        yield key, f"{show(key)}: unknown key; {nearest_key(key)}"
    elif is_key(cause.partition(" ")[0]):  # a rule about a section names its own key
        yield cause.partition(" ")[0], cause
    elif is_key(first := f"{key}.{cause.partition(' ')[0]}"):
        yield first, f"{key}.{cause}"
    else:
        what = cause or _WHAT.get(kind, "wrong type")
        rule = "" if "allowed:" in what else f"; allowed: {allowed(key)}"
        yield key, f"{key} = {show(error['input'])}: {what}{rule}"


def _path(error: ErrorDetails, tree: Tree) -> list[str | int]:
    """Where in the user's tree an error sits: its location without the parts that only validation knows."""
    node: Any = tree
    path: list[str | int] = []
    for part in error["loc"]:
        if isinstance(node, dict) and part in node or isinstance(node, list) and isinstance(part, int):
            node = cast(Any, node)[part]
            path.append(part)
    return [*path, error["loc"][-1]] if error["type"] == "missing" else path


def _as_typed(full: Any, typed: Any) -> Any:
    """`full` with the references that `typed` has in the same places; nothing else reads as a reference."""
    if isinstance(typed, str) and "${" in typed:
        return typed
    if isinstance(full, Mapping):
        given = typed if isinstance(typed, dict) else {}
        return {key: _as_typed(value, given.get(key)) for key, value in full.items()}
    if isinstance(full, list):
        given = typed if isinstance(typed, list) and len(typed) == len(full) else [None] * len(full)
        return [_as_typed(*pair) for pair in zip(full, given, strict=True)]
    return escaped(full) if isinstance(full, str) else full


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of a stored configuration; a list without sections is one value."""
    if isinstance(node, dict) and (node or not prefix):
        for key, value in node.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, list) and any(isinstance(value, dict) for value in node):
        for i, value in enumerate(node):
            yield from _flat(value, f"{prefix}[{i}]")
    else:
        yield prefix, node
