"""From a recipe and overrides to a checked configuration, every mistake worded as one line for the user.

A recipe is YAML with OmegaConf's `${...}` references. What is stored in a run directory (`Recipe.yaml`) has
every default filled in but keeps the references as typed, so that no secret of the environment lands on disk.
Nothing here imports torch or ray: a mistake must not cost their seconds.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from dav_ray.config import Config
from dav_ray.errors import UserError
from dav_ray.keys import allowed, field_of, is_key, nearest_key, required_below, show
from dav_ray.roles import may_change

SHIPPED = Path(__file__).parent / "recipes"

_OUT_OF_RANGE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")
_WHAT = {**dict.fromkeys(_OUT_OF_RANGE, "out of range"), "literal_error": "unknown value"}

Tree = dict[str, Any]
Mistakes = dict[str, str]  # key -> line: one line per key


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
    path = _find(recipe)
    mistakes: Mistakes = {}
    tree = _parse(_read(path), str(path))
    for override in overrides:
        try:
            _assign(tree, override)
        except ValueError as error:
            mistakes[override] = f"{override}: {error}"
    return _build(path.stem, tree, path.parent, mistakes)


def from_yaml(text: str, where: str) -> Recipe:
    """The recipe that a run directory's `config.yaml` holds. Raises UserError with all mistakes found."""
    return _build(Path(where).parent.name, _parse(text, where), Path("."), {})


def shipped() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def differing_keys(stored: str, given: str) -> list[str]:
    """One line per key that differs between two stored configurations, with both values.

    Keys that may change when a run is continued (`roles.may_change`) are left out. A key of which a release that stored
    one of them knew nothing counts as its default.
    """
    old, new = (dict(_flat(OmegaConf.to_container(OmegaConf.create(text)))) for text in (stored, given))
    absent = object()
    lines = []
    for key in [*new, *(key for key in old if key not in new)]:
        field = field_of(key)
        default = field.default if field and isinstance(field.default, str | int | float | None) else absent
        was, now = (values.get(key, default) for values in (old, new))
        if was != now and not may_change(key):
            words = ["not set" if value is absent else show(value) for value in (was, now)]
            lines.append(f"{key}: was {words[0]}, now {words[1]}")
    return lines


def _find(recipe: str) -> Path:
    names = shipped()
    if recipe in names:
        return SHIPPED / f"{recipe}.yaml"
    path = Path(recipe).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"recipe {recipe}: is a folder; allowed: a YAML file, or a shipped recipe ({', '.join(names)})")
    close = difflib.get_close_matches(path.stem, names, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UserError(f"recipe {recipe}: no such file; shipped recipes: {', '.join(names)}{hint}")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: can't be read as text: {_reason(error)}") from None


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return str(error.strerror if isinstance(error, OSError) else error.reason)


def _parse(text: str, where: str) -> Tree:
    """The tree as typed, references unresolved. Raises UserError naming file and line."""
    try:
        config = OmegaConf.create(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{where}{line}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: {_bad_reference(error)}") from None
    tree = OmegaConf.to_container(config)
    if not isinstance(tree, dict):
        raise UserError(f"{where}: must hold `key: value` pairs, this is a list")
    return {str(key): value for key, value in tree.items()}


def _assign(tree: Tree, override: str) -> None:
    """Set one `key.sub=value` in the tree. Raises ValueError saying what is wrong with it."""
    key, equals, text = override.partition("=")
    parts = re.sub(r"\[(\d+)\]", r".\1", key.strip()).split(".")
    if not equals or not all(parts):
        raise ValueError("not an override; allowed: key.sub=value, for instance search.alpha=0.01")
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    except yaml.YAMLError as error:
        problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error)
        raise ValueError(f"the value is not valid YAML: {problem}") from None
    except OmegaConfBaseException as error:
        raise ValueError(_bad_reference(error)) from None
    assert isinstance(value, dict)
    node: Any = tree
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        node, place = _place(node, part, key)
        if following is None:
            node[place] = value["value"]
        else:
            if isinstance(node, dict) and node.get(place) is None:
                node[place] = {}
            node = node[place]


def _place(node: Any, part: str, key: str) -> tuple[Any, str | int]:
    """Where `part` of an override's key lives. A lone entry of a list, as in `reward`, needs no index."""
    if isinstance(node, list) and not part.isdigit() and len(node) == 1:
        node = node[0]
    if isinstance(node, dict):
        return node, part
    if not isinstance(node, list):
        raise ValueError(f"{key.rpartition('.')[0]} is a value, it has no keys")
    if not part.isdigit():
        raise ValueError(f"there are {len(node)} entries here; name one, for instance {key.split('.')[0]}[0].{part}")
    if int(part) >= len(node):
        raise ValueError(f"there is no entry {part}, only {len(node)}")
    return node, int(part)


def _build(name: str, typed: Tree, folder: Path, mistakes: Mistakes) -> Recipe:
    tree = _resolved(OmegaConf.create(typed), "", mistakes)
    if isinstance(tree.get("prompts"), str):
        typed = {key: value for key, value in typed.items() if key != "prompts"}  # the prompts are stored, not the path
        tree["prompts"] = _read_prompts(tree["prompts"], folder, mistakes)
    config = _validated(tree, mistakes)
    if config is None or mistakes:
        raise UserError(list(mistakes.values()))
    if isinstance(typed.get("reward"), dict):
        typed = {**typed, "reward": [typed["reward"]]}
    stored = OmegaConf.to_yaml(OmegaConf.create(_as_typed(config.model_dump(mode="json"), typed)))
    return Recipe(name, config, stored)


def _resolved(node: Any, prefix: str, mistakes: Mistakes) -> Any:
    """The plain tree with references resolved; what can't be is left out and noted."""
    if isinstance(node, DictConfig):
        entries = {key: _item(node, key, f"{prefix}{key}", mistakes) for key in node}
        return {str(key): value[0] for key, value in entries.items() if value}
    if isinstance(node, ListConfig):
        items = [_item(node, i, f"{prefix.rstrip('.')}[{i}]", mistakes) for i in range(len(node))]
        return [item[0] for item in items if item]
    return node


def _item(node: Any, place: Any, key: str, mistakes: Mistakes) -> tuple[Any] | None:
    try:
        value = node[place]
    except MissingMandatoryValue:
        mistakes[key] = f"{key} = ???: a value is needed"
        return None
    except OmegaConfBaseException as error:
        raw = OmegaConf.to_container(node)
        typed = raw[place] if isinstance(raw, (dict, list)) else ""
        mistakes[key] = f"{key} = {typed}: {_bad_reference(error)}"
        return None
    return (_resolved(value, f"{key}.", mistakes),)


def _bad_reference(error: OmegaConfBaseException) -> str:
    text = str(error).partition("\n")[0]
    if unset := re.search(r"Environment variable '(\w+)' not found", text):
        name = unset[1]
        return f"the environment variable {name} is not set; allowed: set it, or ${{oc.env:{name},DEFAULT}}"
    return f"the reference can't be resolved ({text})"


def _read_prompts(name: str, folder: Path, mistakes: Mistakes) -> list[str]:
    """The lines of a prompts file, looked up beside the recipe and then here."""
    places = [folder / Path(name).expanduser(), Path(name).expanduser()]
    found = [place for place in places if place.is_file()]
    if not found:
        mistakes["prompts"] = f"prompts = {show(name)}: no such file; allowed: {allowed('prompts')}"
        return []
    try:
        lines = [line.strip() for line in found[0].read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        mistakes["prompts"] = f"prompts = {show(name)}: can't be read as text: {_reason(error)}"
        return []
    if not lines:
        mistakes["prompts"] = f"prompts = {show(name)}: the file is empty; allowed: one prompt per line"
    return lines


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
    elif kind in ("extra_forbidden", "invalid_key"):
        yield key, f"{key}: unknown key; {nearest_key(key)}"
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
    return full.replace("${", "\\${") if isinstance(full, str) else full


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
