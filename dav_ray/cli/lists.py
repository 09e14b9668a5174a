"""`dav-ray list`: what can be named in a recipe, one line each. Imports nothing of what it lists."""

from __future__ import annotations

import ast
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from dav_ray.cli.failures import exit_codes
from dav_ray.redact import printable

TABLES = {  # what is listed -> the registry that has it
    "rewards": "dav_ray.rewards.registry:REWARDS",
    "models": "dav_ray.config.families.table:MODELS",
    "searches": "dav_ray.search.kinds:SEARCHES",
    "objectives": "dav_ray.mstep.registry:OBJECTIVES",
}
RECIPES = "recipes"


@dataclass(frozen=True)
class Listed:
    """package: the installed package that brings it; fault: why it can't be used, where it can't."""

    name: str
    about: str
    package: str = "dav_ray"
    fault: str = ""

    def __str__(self) -> str:
        source = "" if self.package == "dav_ray" else f" ({self.package})"
        return f"{f'CAN NOT BE USED: {self.fault}' if self.fault else self.about}{source}"


def show_list(
    what: Annotated[str, typer.Argument(metavar="|".join([*TABLES, RECIPES]), help="What is listed.")],
    as_json: Annotated[bool, typer.Option("--json", help="For programs: a list of objects.")] = False,
) -> None:
    """List what recipes can name, those of other installed packages too."""
    with exit_codes():
        found = list(listed(what))
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=2, ensure_ascii=False))
        return
    width = max(len(one.name) for one in found)
    for one in found:
        typer.echo(printable(f"{one.name:<{width}}  {one}"))


def listed(what: str) -> Iterator[Listed]:
    """UserError for what there is no list of."""
    from dav_ray.errors import UserError
    from dav_ray.redact import show
    from dav_ray.registry import Registry, load

    if what == RECIPES:
        yield from _recipes()
        return
    if what not in TABLES:
        raise UserError(f"list {show(what)}: there is no such list; allowed: {', '.join([*TABLES, RECIPES])}")
    registry: Registry = load(TABLES[what])
    for name, entry in registry.entries():
        if entry.distribution:
            about = "" if entry.fault else described(entry.target)
            yield Listed(name, about or entry.target, entry.distribution, entry.fault)
        else:
            yield Listed(name, entry.about)


def _recipes() -> Iterator[Listed]:
    from dav_ray.config.recipe.load import SHIPPED, shipped

    for name in shipped():
        lines = (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        above = itertools.takewhile(lambda line: line.startswith("#"), lines)
        about = " ".join(line.removeprefix("#").strip() for line in above)
        yield Listed(name, re.split(r": |\. (?=[A-Z])", about)[0].rstrip("."))


def described(target: str) -> str:
    """The first line of a class's or function's docstring, read from its source; nothing where there is none."""
    from dav_ray.config.imports import module_file

    module, _, name = target.partition(":")
    file = module_file(module)
    try:
        body = ast.parse(Path(file).read_text(encoding="utf-8")).body if file and file.endswith(".py") else []
    except (OSError, SyntaxError, ValueError):
        return ""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return ""
