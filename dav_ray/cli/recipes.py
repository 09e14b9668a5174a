"""The commands about recipes that start nothing: `dav-ray init` and `dav-ray config`."""

from __future__ import annotations

import shlex
import shutil
from typing import Annotated

import typer

from dav_ray.cli.failures import exit_codes
from dav_ray.redact import printable

PIPED = 100  # columns where there is no terminal


def init(
    path: Annotated[str, typer.Argument(metavar="[PATH]", help="The file to write.")] = "my.yaml",
    origin: Annotated[
        str | None, typer.Option("--from", metavar="RECIPE", help="A shipped recipe or a YAML file to start from.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a commented recipe of your own, to be changed and run."""
    with exit_codes():
        from dav_ray.config.recipe.template import write_recipe

        place = printable(shlex.quote(str(write_recipe(path, origin, force=force))))
        typer.echo(f"{place} written; next: dav-ray run {place} --dry-run")


def config(
    key: Annotated[
        str | None, typer.Argument(metavar="[KEY]", help="A section or a key, such as search or search.alpha.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: a list of objects.")] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="A JSON schema of recipes, for editors that complete YAML.")
    ] = False,
) -> None:
    """Print the configuration's keys: default, what is allowed, meaning."""
    with exit_codes():
        from dav_ray.config.keys import table
        from dav_ray.errors import UserError

        if schema:
            if key is not None or as_json:
                raise UserError("--schema: is of whole recipes, and is JSON; allowed: alone")
            import json

            from dav_ray.config.keys.json_schema import recipe_schema

            typer.echo(json.dumps(recipe_schema(), indent=2, ensure_ascii=False))
            return
        keys = table.table(key)
        width = shutil.get_terminal_size((PIPED, 24)).columns
        typer.echo(table.as_json(keys) if as_json else table.render(keys, width))
