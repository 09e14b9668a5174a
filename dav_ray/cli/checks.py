"""Checks that the commands make first: the run directory, its model, and the user's own code, which is announced."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import typer

from dav_ray.errors import UserError
from dav_ray.redact import hide, printable

if TYPE_CHECKING:
    from dav_ray.config.recipe.load import Recipe
    from dav_ray.config.schema import Config


class _Terminal(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(printable(record.getMessage()), err=True)


def show_imports() -> None:
    """Say which model family of the user's own is imported, before it is: it is needed to read a recipe at all."""
    logger = logging.getLogger("dav_ray.config.families")
    logger.setLevel(logging.INFO)
    logger.addHandler(_Terminal())
    logger.propagate = False


def announce(config: Config, mark: str = "") -> None:
    """Say which code of the user's own will be imported, before any of it is. mark: what each line starts with."""
    from dav_ray.config.checks.user_code import announced

    for line in announced(config):
        typer.echo(f"{mark}{printable(line)}")


def require_run(run_dir: str, address: str = "local") -> None:
    """Raises UserError if this is no run directory, or the address can't be used."""
    from dav_ray.config.checks.preflight import check_address
    from dav_ray.config.stored import read_run_file
    from dav_ray.redact import PATH, show

    check_address(address)
    if "://" not in run_dir and (not run_dir.strip() or "\0" in run_dir):
        raise UserError(f"{run_dir!r}: is no path; allowed: the --run-dir of a `dav-ray run`")
    if read_run_file(run_dir, "config.yaml") is None:
        missing = "://" not in run_dir and not os.path.exists(os.path.expanduser(run_dir))
        why = "no such directory" if missing else "is no run directory (it has no config.yaml)"
        raise UserError(f"{show(run_dir, PATH)}: {why}; allowed: the --run-dir of a `dav-ray run`")


def require_model(run_dir: str, address: str) -> None:
    """Raises UserError if the run's model, rewards or last policy are not there any more; says which code of the user's
    own its config.yaml names."""
    from dav_ray.config.checks.preflight import check
    from dav_ray.config.model_path import check_there
    from dav_ray.config.stored import read_run

    stored = read_run(run_dir)
    check_there(stored.config.model.path, f"{run_dir}/config.yaml")
    announce(stored.config)
    check(stored.config, address, tracked=False)
    folder = f"policy/v{stored.manifest.policy_version:04d}"
    if stored.manifest.policy_version and not stored.storage.list(folder):
        raise UserError(f"{run_dir}: {folder} is absent, the run's last policy; allowed: a run directory that is whole")


COMMENT = "# "  # a dry run is YAML: what is said beside it reads as comments


def dry_run_text(recipe: Recipe, run_dir: str) -> str:
    """The whole configuration, and the plan as comments: a recipe that can be run."""
    from dav_ray.config.plan import plan, render

    place = run_dir if "://" in run_dir else os.path.abspath(os.path.expanduser(run_dir))
    numbers = hide(render(recipe.config, plan(recipe.config)))
    beside = f"run directory: {printable(place)}\n{numbers}\nnothing was started"
    return f"{recipe.yaml}\n{as_comments(beside)}"


def as_comments(text: str) -> str:
    return "\n".join(f"{COMMENT}{line}".rstrip() for line in text.splitlines())
