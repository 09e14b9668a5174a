"""What can be known to be wrong before anything heavy is imported: model folder, rewards, run directory."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

from dav_ray.config.checks.objectives import objective_mistakes
from dav_ray.config.checks.prompt_columns import column_mistakes
from dav_ray.config.checks.ray_addresses import check_auto
from dav_ray.config.checks.rewards import import_own, reward_mistakes
from dav_ray.config.checks.roles import role_mistakes
from dav_ray.config.checks.searches import search_mistakes
from dav_ray.config.checks.submitted import inside_submitted_job
from dav_ray.config.checks.trackers import tracker_mistakes
from dav_ray.config.families.table import family_of
from dav_ray.config.model_path import model_path
from dav_ray.config.recipe.load import Recipe
from dav_ray.config.recipe.same_run import check_same
from dav_ray.config.schema import Config
from dav_ray.config.stored import read_run_file
from dav_ray.errors import UserError
from dav_ray.redact import PATH, show
from dav_ray.registry import known, on_path
from dav_ray.run_dir.storage.uri import open_storage

CONNECT_TIMEOUT_S = 1.0
FEATURES = {"images": ("auto", "pixels", "digits"), "sequences": ("auto",)}  # by what the model draws
OWN_FILES = {"config.yaml", "manifest.json", "lease.json", "report.html", "buffer", "evaluate", "golden", "manifests"}
OWN_FILES |= {"events.jsonl", "marker", "metrics.jsonl", "policy", "quarantine", "ray.log", "tracking"}


def check(config: Config, address: str = "auto", *, tracked: bool = True) -> None:
    """Raises UserError with every mistake that the disk and the rewards' own code can tell.

    address: interpreters are looked for on this machine if it is `local`. tracked: whether trackers are needed.
    """
    on_path(config.modules)
    mistakes = [*model_mistakes(config), *_features_mistakes(config), *role_mistakes(config), *search_mistakes(config)]
    mistakes += objective_mistakes(config.mstep)
    mistakes += tracker_mistakes(config.track) if tracked else ()
    for key, rewards, gradient in (
        ("reward", config.reward, config.search.gradient),
        ("evaluate.heldout", config.evaluate.heldout, False),
    ):
        for i, reward in enumerate(rewards):
            name = key if len(rewards) == 1 else f"{key}[{i}]"
            mistakes += reward_mistakes(name, reward, gradient, address)
            mistakes += column_mistakes(name, reward, config.prompts)
    if mistakes:
        raise UserError(mistakes)
    family_of(config.model).check_weights(config, model_path(config.model.path))


def check_here(config: Config) -> None:
    """UserError for a model that this machine, which is the only one, has not and can't download."""
    family_of(config.model).check_here(config)


def model_mistakes(config: Config) -> Iterator[str]:
    """One line per reason why the model can't be searched."""
    try:
        path = model_path(config.model.path)
    except UserError as error:
        yield from error.lines
        return
    yield from family_of(config.model).mistakes(config, path)


def check_address(address: str, connect: bool = True) -> None:
    """Raises UserError for an address that is none, is a Ray Client's, or (connect) where nothing answers, or `auto`
    where that may be one of several.

    Ray itself waits minutes for a cluster that is not there.
    """
    if address.startswith("ray://"):  # Ray Data can't read through it
        raise UserError(
            f"--address {show(address)}: a run can't go through Ray Client; allowed: auto, local or HOST:PORT, "
            "or submit it: ray job submit --working-dir . -- dav-ray run RECIPE.yaml"
        )
    if address == "auto" and connect:
        check_auto()
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    number = int(port) if port.isascii() and port.isdecimal() and len(port) <= 5 else 0
    if not host or not 0 < number < 2**16 or not host.isprintable() or set(host) & set("/@ "):
        raise UserError(f"--address {show(address)}: is no address; allowed: auto, local or HOST:PORT")
    if connect:
        try:
            socket.create_connection((host.strip("[]"), number), CONNECT_TIMEOUT_S).close()
        except (OSError, UnicodeError) as error:
            raise UserError(
                f"--address {show(address)}: no Ray cluster answers ({error}); allowed: auto, local or HOST:PORT"
            ) from None


def check_run_dir(run_dir: str, recipe: Recipe) -> None:
    """Raises UserError if a run of this recipe can't live in, or be continued from, this directory."""
    if not _is_uri(run_dir):
        _check_local(run_dir)
    if (stored := read_run_file(run_dir, "config.yaml")) is not None:
        check_same(stored, recipe, run_dir, open_storage(run_dir))


def _is_uri(run_dir: str) -> bool:
    return "://" in run_dir


def _check_local(run_dir: str) -> None:
    path = Path(os.path.expanduser(run_dir))
    if not run_dir.strip() or "\0" in run_dir:
        raise UserError(f"--run-dir {show(run_dir, PATH)}: is no path; allowed: a folder, existing or new")
    if inside_submitted_job() and not path.is_absolute():
        raise UserError(
            f"--run-dir {run_dir}: is relative, and a job's working directory is a temporary copy; "
            "allowed: an absolute path that all nodes share, or s3://bucket/prefix"
        )
    nearest = next(place for place in [path.absolute(), *path.absolute().parents] if os.path.exists(place))
    missing = path.absolute().relative_to(nearest).parts
    if not nearest.is_dir():
        raise UserError(f"--run-dir {run_dir}: {nearest} is a file; allowed: a folder, existing or new")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"--run-dir {run_dir}: {nearest} is not writable; allowed: a folder that you may write to")
    longest = os.pathconf(nearest, "PC_NAME_MAX")
    if any(len(os.fsencode(name)) > longest for name in missing):
        raise UserError(f"--run-dir {show(run_dir, PATH)}: a name is too long; allowed: at most {longest} bytes")
    if not missing:
        _check_foreign(run_dir, path)


def _check_foreign(run_dir: str, path: Path) -> None:
    """Raises UserError for a folder of something else, which a run would mix its files with."""
    names = {name for name in os.listdir(path) if not name.startswith(".")}
    if not names & {"config.yaml", "manifest.json"} and (others := sorted(names - OWN_FILES)):
        raise UserError(
            f"--run-dir {run_dir}: holds {show(others[0])}, and no run; allowed: a run's folder, or an empty or new one"
        )


def _features_mistakes(config: Config) -> Iterator[str]:
    features = config.evaluate.features
    names = FEATURES[family_of(config.model).samples]
    if ":" in features:
        try:
            import_own(features)
        except ValueError as error:
            yield f"evaluate.features = {show(features, PATH)}: {error}"
    elif features not in names:
        yield f"evaluate.features = {show(features)}: unknown features; {known(features, names)}"
