"""A recipe as it is typed: YAML with OmegaConf's `${...}` references, and `key.sub=value` overrides of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import KeyValidationError, MissingMandatoryValue, OmegaConfBaseException
from omegaconf.resolvers import oc

from dav_ray import redact
from dav_ray.errors import UserError
from dav_ray.redact import show

try:
    from yaml import CSafeLoader as Loader
except ImportError:  # PyYAML without libyaml
    from yaml import SafeLoader as Loader

MOST_NODES = 1_000_000  # keys and values, those behind aliases counted at each
DEEPEST = 32  # nested lists and mappings; YAML's own reader crashes the interpreter at some thousands

NUMERAL = re.compile(r"\d[\w.+-]*")
MISSING = "\\???"  # the text of three question marks

Tree = dict[str, Any]
Mistakes = dict[str, str]  # key -> line: one line per key


def parse(text: str, where: str) -> Tree:
    """The tree as typed, references unresolved. Raises UserError naming file and line."""
    try:
        _check_depth(text)
        config = OmegaConf.create(text, max_yaml_expanded_nodes=MOST_NODES)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{where}{line}: not valid YAML: {_problem(error, text)}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML: {_sentence(error)}") from None
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: {_bad_reference(error)}") from None
    except (AssertionError, ValueError, RecursionError) as error:  # a lone number; one of thousands of digits
        raise UserError(f"{where}: {_unreadable(error)}") from None
    tree = _typed(config, OmegaConf.to_container(config))
    if not isinstance(tree, dict):
        raise UserError(f"{where}: must hold `key: value` pairs, this is a list")
    return {str(key): value for key, value in tree.items()}


def assign(tree: Tree, override: str) -> None:
    """Set one `key.sub=value` in the tree. Raises ValueError saying what is wrong with it."""
    key, equals, text = override.partition("=")
    parts = re.sub(r"\[(\d+)\]", r".\1", key.strip()).split(".")
    if not equals or not all(parts):
        raise ValueError("not an override; allowed: key.sub=value, for instance search.alpha=0.01")
    if len(parts) > DEEPEST:
        raise ValueError(f"the key has {len(parts)} parts; allowed: at most {DEEPEST}")
    node: Any = tree
    if len(parts) > 1 and parts[1].isdecimal() and isinstance(tree.get(parts[0]), dict):
        tree[parts[0]] = [tree[parts[0]]]  # a lone reward is a list of one
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        node, place = _place(node, part, key)
        if following is None:
            # a commit or a branch may look like a number, even with zeros in front
            node[place] = text if part == "revision" and NUMERAL.fullmatch(text) else _value(text)
        else:
            if isinstance(node, dict) and node.get(place) is None:
                node[place] = {}
            node = node[place]


def resolved(typed: Tree, mistakes: Mistakes) -> Tree:
    """The plain tree with references resolved; what can't be is left out and noted."""
    return _resolved(OmegaConf.create(typed), "", mistakes)


def escaped(text: str) -> str:
    """As it is to be typed, so that it reads as no reference and as no missing value."""
    return MISSING if text == "???" else re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def _typed(config: Any, plain: Any) -> Any:
    """`plain` with escapes that OmegaConf takes out too early: `???` that is text."""
    if isinstance(plain, dict):
        return {key: _typed_item(config, key, value) for key, value in plain.items()}
    if isinstance(plain, list):
        return [_typed_item(config, i, value) for i, value in enumerate(plain)]
    return plain


def _typed_item(config: Any, place: Any, value: Any) -> Any:
    if isinstance(value, dict | list):
        return _typed(config[place], value)
    return MISSING if value == "???" and not OmegaConf.is_missing(config, place) else value


def _value(text: str) -> Any:
    """What follows an override's `=`. Raises ValueError."""
    try:
        _check_depth(text)
        config = OmegaConf.from_dotlist([f"value={text}"])
    except yaml.YAMLError as error:
        problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else _sentence(error)
        raise ValueError(f"the value is not valid YAML: {problem}") from None
    except OmegaConfBaseException as error:
        raise ValueError(_bad_reference(error)) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(_unreadable(error)) from None
    return _typed(config, OmegaConf.to_container(config))["value"]


def _place(node: Any, part: str, key: str) -> tuple[Any, str | int]:
    """Where `part` of an override's key lives. A lone entry of a list, as in `reward`, needs no index."""
    if isinstance(node, list) and not part.isdecimal() and len(node) == 1:
        node = node[0]
    if isinstance(node, dict):
        return node, part
    if not isinstance(node, list):
        raise ValueError(f"{key.rpartition('.')[0]} is a value, it has no keys")
    if not part.isdecimal():
        raise ValueError(f"there are {len(node)} entries here; name one, for instance {key.split('.')[0]}[0].{part}")
    if len(part) > 9 or int(part) >= len(node):
        raise ValueError(f"there is no entry {show(part)}, only {len(node)}")
    return node, int(part)


def _resolved(node: Any, prefix: str, mistakes: Mistakes) -> Any:
    if isinstance(node, DictConfig):
        entries = {key: _item(node, key, f"{prefix}{key}", mistakes) for key in node}
        return {str(key): value[0] for key, value in entries.items() if value}
    if isinstance(node, ListConfig):
        items = [_item(node, i, f"{prefix.rstrip('.')}[{i}]", mistakes) for i in range(len(node))]
        return [item[0] for item in items if item]
    return node


def _item(node: Any, place: Any, key: str, mistakes: Mistakes) -> tuple[Any] | None:
    try:
        return (_resolved(node[place], f"{key}.", mistakes),)
    except MissingMandatoryValue:
        mistakes[key] = f"{key} = ???: a value is needed"
        return None
    except (OmegaConfBaseException, RecursionError) as error:
        raw = OmegaConf.to_container(node)
        typed = raw[place] if isinstance(raw, (dict, list)) else ""
        cause = _bad_reference(error) if isinstance(error, OmegaConfBaseException) else _unreadable(error)
        mistakes[key] = f"{key} = {show(typed)}: {cause}"
        return None


def _check_depth(text: str) -> None:
    """Raises RecursionError, or what YAML's scanner raises."""
    depth = 0
    for event in _events(text):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise RecursionError


def _events(text: str) -> Iterator[yaml.Event]:
    """RecursionError where libyaml has a limit of its own, as its newer releases do."""
    try:
        yield from yaml.parse(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        if "nesting depth" in str(error.problem):
            raise RecursionError from None
        raise


def _problem(error: yaml.MarkedYAMLError, text: str) -> str:
    mark = error.problem_mark
    if mark and "cannot start any token" in (error.problem or ""):
        line = [*text.splitlines(), ""][mark.line]
        if line[mark.column : mark.column + 1] == "\t":
            return "a tab; allowed: blanks"
    return _sentence(error.problem or error.context)


def _sentence(error: object) -> str:
    """The first one, on one line: what follows is advice for programs."""
    return " ".join(str(error).split()).split(". ")[0]


def _unreadable(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"nested too deeply; allowed: at most {DEEPEST} levels"
    if isinstance(error, AssertionError):
        return "must hold `key: value` pairs, this is a value"
    return f"holds a value that can't be read: {_sentence(error).split('; ')[0]}"


def _bad_reference(error: OmegaConfBaseException) -> str:
    text = str(error).partition("\n")[0]
    if isinstance(error, KeyValidationError):
        return f"a key is no text ({text})"
    if unset := re.search(r"Environment variable '(\w+)' not found", text):
        name = unset[1]
        return f"the environment variable {name} is not set; allowed: set it, or ${{oc.env:{name},DEFAULT}}"
    return f"the reference can't be resolved ({text})"


_ABSENT = object()


def _environment(key: str, default: Any = _ABSENT) -> str | None:
    """OmegaConf's own `oc.env`; what it reads is a secret from then on."""
    found = oc.env(key) if default is _ABSENT else oc.env(key, default)
    if found is not None and found is not default:
        redact.remember(key, found)
    return found


OmegaConf.register_resolver("oc.env", _environment, replace=True)
