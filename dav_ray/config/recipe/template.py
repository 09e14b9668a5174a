"""A recipe of one's own to start from, for `dav-ray init`: a template, or the keys of another recipe, with comments."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from dav_ray.config.recipe.comments import commented
from dav_ray.config.recipe.load import load, source
from dav_ray.config.recipe.typed_yaml import Loader, escaped
from dav_ray.errors import UserError
from dav_ray.redact import PATH, show

HEADER = """\
# A recipe of your own. Every key that is left out has its default.
#   dav-ray run {name} --dry-run    # the whole configuration and what it costs; starts nothing
#   dav-ray config search    # the keys of a section; without a name: all of them
"""
TEMPLATE = """\
seed: 0
rounds: 8

model:
  path: shipped:digits
  dtype: float32

prompts: [zero, one, two, three, four, five, six, seven, eight, nine]

reward:
  - kind: jpeg_compressibility
    weight: 1.0
  - kind: brightness
    name: ink
    weight: 0.1

search:
  candidates: 4
  alpha: 0.002
  gradient: false
  steps: 20
  guidance_scale: 2.0
  trajectories: 64
  chunk: 16

mstep:
  kl: 0.2
  candidates: all
  learning_rate: 1.0e-3
  batch_size: 128
  lora:
    rank: 16
    targets: [to_q, to_k, to_v, to_out.0, conv1, conv2, time_emb_proj]

evaluate:
  samples: 100
  heldout:
    - kind: digit_legibility
      name: legibility

track:
  kinds: []

roles:
  search:
    replicas: 2
    cpus: 0.2
    gpus: 0
  reward:
    replicas: 1
    cpus: 0.1
  train:
    replicas: 2
    cpus: 0.2
    gpus: 0
"""
# the last two parts of keys that hold paths, relative ones of which belong to the recipe's folder or to the current one
_PATHS = {"prompts", "model.path", "model.draft_vae", "evaluate.reference", "args.weights", "args.checkpoint"}
_FILES = {"golden", "python"}  # the last part of others
_CODE = {"kind", "features", "objective"}  # of those that may hold FILE.py:NAME


def write_recipe(place: str, origin: str | None, *, force: bool = False) -> Path:
    """Write the template, or a commented copy of the recipe `origin`. UserError if there is something at `place`
    already (but for force), or it can't be written, or the origin has mistakes."""
    target = Path(os.path.expanduser(place))
    if target.is_dir():
        raise UserError(f"{show(place, PATH)}: is a folder; allowed: the path of a new YAML file")
    if os.path.lexists(target) and not force:
        raise UserError(f"{show(place, PATH)}: is there already; allowed: another path, or --force")
    text = template(target.name) if origin is None else copy_of(origin, target.parent)
    try:
        target.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"{show(place, PATH)}: can't be written: {reason}; allowed: a path in a folder of yours"
        ) from None
    return target


def template(name: str) -> str:
    """The commented template; name: what the file is called in it."""
    return f"{HEADER.format(name=name)}\n{commented(TEMPLATE)}"


def copy_of(origin: str, folder: Path) -> str:
    """A recipe's text with comments, its relative paths as they have to be in a file that lies in `folder`."""
    load(origin)
    path, text = source(origin)
    if path.parent.absolute() != folder.absolute():
        text = _moved(text, path.parent)
    return commented(text)


def _moved(text: str, home: Path) -> str:
    """The text with absolute paths in the place of relative ones that are found beside the recipe, or else here."""
    lines = text.splitlines(keepends=True)
    nodes = sorted(_texts(yaml.compose(text, Loader=Loader)), key=lambda found: found[1].start_mark.index, reverse=True)
    for key, node in nodes:
        start, end = node.start_mark, node.end_mark
        if start.line == end.line and (found := _found(key, node.value, home)):
            line = lines[start.line]
            lines[start.line] = f"{line[: start.column]}{_typed(found)}{line[end.column :]}"
    return "".join(lines)


def _texts(node: Any, above: str = "", key: str = "") -> Iterator[tuple[str, Any]]:
    """Texts, each with the last two parts of its key. Entries of a list have their list's."""
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield from _texts(value, key, str(name.value))
    elif isinstance(node, yaml.SequenceNode) and key != "prompts":
        for value in node.value:
            yield from _texts(value, above, key)
    elif isinstance(node, yaml.ScalarNode):
        yield f"{above}.{key}".lstrip("."), node


def _found(key: str, value: str, home: Path) -> str | None:
    """The absolute path of a relative one; of FILE.py:NAME too. None where none is meant, or none is found."""
    last, (path, colon, name) = key.rpartition(".")[2], (value, "", "")
    if last in _CODE:
        path, colon, name = value.rpartition(":")
    if key not in _PATHS and last not in _FILES and not (last in _CODE and path.endswith(".py")):
        return None
    if not path.strip() or "\0" in path or "${" in path or os.path.isabs(os.path.expanduser(path)):
        return None
    places = [folder / path for folder in (home, Path("."))]
    found = next((place for place in places if place.exists()), None)
    return None if found is None else f"{os.path.abspath(found)}{colon}{name}"


def _typed(path: str) -> str:
    text = escaped(path)
    return text if re.fullmatch(r"[\w./-]+", text) else json.dumps(text, ensure_ascii=False)
