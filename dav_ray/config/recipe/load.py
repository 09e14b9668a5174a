"""From a recipe and overrides to a checked configuration, every mistake worded as one line for the user.

A recipe is YAML with OmegaConf's `${...}` references. What is stored in a run directory (`Recipe.yaml`) has
every default filled in but keeps the references as typed, so that no secret of the environment lands on disk.
Nothing here imports torch or ray: a mistake must not cost their seconds.
"""

from __future__ import annotations

import difflib
import json
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from dav_ray.config.batches import Batches
from dav_ray.config.families.table import USUAL, family_of_section, ships
from dav_ray.config.keys.describe import allowed, is_key, nearest_key, required_below
from dav_ray.config.recipe.paths import absolute
from dav_ray.config.recipe.prompt_sources.lines import to_json_lines
from dav_ray.config.recipe.prompts_file import read_prompts
from dav_ray.config.recipe.typed_yaml import Mistakes, Tree, assign, escaped, parse, resolved
from dav_ray.config.recipe.user_modules import with_modules
from dav_ray.config.schema import Config
from dav_ray.config.sections.prompts import Prompts
from dav_ray.errors import UserError
from dav_ray.redact import PATH, hide, show
from dav_ray.registry import on_path

SHIPPED = Path(__file__).parents[2] / "assets" / "recipes"
MOST_BYTES = 64_000_000  # of a recipe
HERE = Path(".")

_OUT_OF_RANGE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")
_WHAT = {
    **dict.fromkeys(_OUT_OF_RANGE, "out of range"),
    **dict.fromkeys(("string_pattern_mismatch", "too_short"), "not allowed"),
    "literal_error": "unknown value",
}


@dataclass(frozen=True)
class Recipe:
    """A configuration as it runs (`config`: references resolved, paths absolute) and is stored (`yaml`: references as
    typed)."""

    name: str
    config: Config
    typed: Tree = field(repr=False, compare=False)  # with references and without defaults
    as_typed: Config | None = None  # the configuration with its paths as typed, as earlier releases had it

    @cached_property
    def yaml(self) -> str:
        return _stored(self.config, self.typed)


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
    return _build(path.stem, tree, (path.parent, HERE), mistakes)


def from_yaml(text: str, where: str) -> Recipe:
    """The recipe that a run directory's `config.yaml` holds. Raises UserError with all mistakes found."""
    return _build(Path(where).parent.name, parse(text, where), (HERE,), {})


def with_batches(recipe: Recipe, batches: Batches) -> Recipe:
    """The recipe with these sizes in place of what it has for them. UserError where a whole section is a reference."""
    return with_values(recipe, batches.by_key(), "batches = probed", "batches = given")


def with_values(recipe: Recipe, values: Mapping[str, Any], why: str, instead: str) -> Recipe:
    """The recipe with these values by key; references elsewhere stay as typed. UserError where a whole section is a
    reference, naming `why` they are set, and what else is allowed."""
    tree = parse(recipe.yaml, recipe.name)
    for key, value in values.items():
        try:
            assign(tree, f"{key}={value}")
        except ValueError as error:
            raise UserError(f"{why}: {key}: {error}; allowed: keys written out, or {instead}") from None
    return _build(recipe.name, tree, (HERE,), {})


def source(recipe: str) -> tuple[Path, str]:
    """Where a recipe lies, and its text. Raises UserError if there is none, or it can't be read."""
    path = _find(recipe)
    return path, _read(path)


def shipped() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


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


def _build(name: str, typed: Tree, folders: Sequence[Path], mistakes: Mistakes) -> Recipe:
    """folders: where relative paths are looked up, in this order."""
    plain = tree = resolved(typed, mistakes)
    typed, tree = with_modules(*absolute(typed, tree, folders), folders)
    if not ships(tree.get("model")):  # its family is imported
        on_path([folder for folder in tree.get("modules") or () if isinstance(folder, str)])
    if (family := family_of_section(tree.get("model"))) is not None:
        tree = {**tree, "model": {**tree["model"], **family.own_values(tree["model"])}}
    if isinstance(tree.get("prompts"), str | dict):
        typed = {key: value for key, value in typed.items() if key != "prompts"}  # the prompts are stored, not the path
        tree["prompts"] = read_prompts(tree["prompts"], folders, mistakes)
    config = _validated(tree, mistakes)
    if config is not None:
        mistakes |= {line: line for line in _secret_mistakes(config)}
    if config is None or mistakes:
        raise UserError(list(mistakes.values()))
    if isinstance(typed.get("reward"), dict):
        typed = {**typed, "reward": [typed["reward"]]}
    found = {"prompts": config.prompts, "model": {**plain["model"], "kind": tree["model"].get("kind", USUAL)}}
    as_typed = Config.model_validate({**plain, **found})
    return Recipe(name, config, typed, as_typed)


def _stored(config: Config, typed: Tree) -> str:
    """What `config.yaml` has. Prompts that are more than texts are one JSON text there, an object per line: as YAML,
    thousands of them would take minutes to read."""
    if config.prompts.plain:
        return OmegaConf.to_yaml(OmegaConf.create(_as_typed(config.model_dump(mode="json"), typed)))
    full = config.model_copy(update={"prompts": Prompts()}).model_dump(mode="json")
    text = OmegaConf.to_yaml(OmegaConf.create(_as_typed(full, typed)))
    rows = textwrap.indent(to_json_lines(config.prompts), "  ")
    return text.replace("\nprompts: []\n", f"\nprompts: |\n{rows}", 1)


def _secret_mistakes(config: Config) -> Iterator[str]:
    """What of the environment would be stored with the samples, or shown in metrics."""
    shown = {f"prompts[{i}]": prompt for i, prompt in enumerate(config.prompts)}
    for text, columns in config.prompts.columns.items():
        shown[f"prompts: {show(text)}"] = json.dumps(columns, ensure_ascii=False)
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
