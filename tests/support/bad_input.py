"""Wrong input as users type it, and what the command says: run in one fresh interpreter, so that imports are seen.

`python -m tests.support.bad_input FOLDER` prints one JSON line per case.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass

HEAVY = ("torch", "ray", "diffusers", "transformers")
DIGITS = "9" * 5000
LONG = "x" * 5000


@dataclass(frozen=True)
class Case:
    """words: the command line; start: of one of the lines, after `dav-ray: `; code: the exit code."""

    words: tuple[str, ...]
    start: str
    code: int = 2
    heavy: bool = False  # only what is inside of a checkpoint tells, which takes torch


def override(start: str, *words: str, recipe: str = "mine.yaml") -> Case:
    return Case(("run", recipe, *words, "--dry-run"), start)


def dna(start: str, *words: str, heavy: bool = False) -> Case:
    return Case(("run", "dna.yaml", *words, "--dry-run"), start, heavy=heavy)


def main(folder: str) -> None:
    """Run every case in `folder`, the light ones first."""
    import typer.testing

    from dav_ray.cli.app import app
    from tests.support import bad_files, bad_recipes

    os.chdir(folder)
    bad_recipes.write()
    bad_files.write()
    command = typer.main.get_command(app)
    typer.testing._get_command = lambda _: command  # building it for each case takes most of the time
    cases = [*bad_recipes.CASES, *bad_files.CASES]
    for number, case in sorted(enumerate(cases), key=lambda item: item[1].heavy):
        started = time.monotonic()
        result = typer.testing.CliRunner().invoke(app, list(case.words))
        found = {
            "number": number,
            "code": result.exit_code,
            "raised": repr(result.exception) if not isinstance(result.exception, SystemExit | None) else "",
            "stderr": result.stderr,
            "stdout": result.stdout[-2000:],
            "heavy": sorted(set(sys.modules) & set(HEAVY)),
            "seconds": time.monotonic() - started,
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
