"""Arguments and options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or a shipped recipe such as digits.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Settings that differ from the recipe's."),
]
RunDir = Annotated[str, typer.Argument(metavar="RUN_DIR", help="A run directory: a path, s3:// or gs://.")]
Address = Annotated[
    str,
    typer.Option(envvar="RAY_ADDRESS", metavar="auto|local|HOST:PORT", help="The Ray cluster; local starts one here."),
]
