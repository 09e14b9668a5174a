"""A run that starts from the policy of an earlier one (`init`): which policy that is, and its copy as version 0.

The reference of KL and anchor stays the pretrained model, and the optimizer starts fresh. Once the policy is copied
into `policy/v0000`, the run needs the earlier one no more. Nothing here imports torch or ray: mistakes come first.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dav_ray.config.recipe.load import Recipe, with_values
from dav_ray.config.recipe.typed_yaml import parse
from dav_ray.config.schema import Config
from dav_ray.config.stored import read_run, read_run_file
from dav_ray.config.which_policy import chosen
from dav_ray.errors import RunError, UserError
from dav_ray.redact import PATH, show
from dav_ray.run_dir.policy_files import OPTIMIZER_FILE, folder
from dav_ray.run_dir.records import RunLog
from dav_ray.run_dir.storage.folders import download, upload
from dav_ray.run_dir.storage.interface import Storage
from dav_ray.run_dir.storage.uri import open_storage

ORIGIN = f"{folder(0)}/origin.json"  # written last: the copy is whole
SAME = (  # what two runs must have in common for one's policy to fit the other's model
    *(f"model.{name}" for name in ("kind", "path", "weights", "alphabet", "length", "variant", "revision")),
    "mstep.parameters",
)
SAME_ADAPTERS = ("mstep.lora.rank", "mstep.lora.alpha", "mstep.lora.targets")


def with_version(recipe: Recipe, run_dir: str) -> Recipe:
    """The recipe with the number of the policy that `init` means: the one that a run at `run_dir` started from, else
    what the earlier run's directory says. UserError with every reason why that policy can't be started from."""
    init = recipe.config.init
    if init.run is None:
        return recipe
    number = _started_from(run_dir, init.run)
    if number is None:
        number = _checked(recipe.config, init.run, run_dir)
    elif init.version not in ("best", "last", number):
        return recipe  # another one: refused like any key that may not change
    return with_values(recipe, {"init.version": number}, "init.version", "a number for it")


def copy_initial(config: Config, storage: Storage, log: RunLog) -> None:
    """Make the earlier run's policy version 0 of this one, unless it is. RunError if it went meanwhile."""
    run, version = config.init.run, config.init.version
    if run is None or storage.exists(ORIGIN):
        return
    assert isinstance(version, int)  # with_version has seen to that
    with tempfile.TemporaryDirectory() as local:
        try:
            download(open_storage(run), folder(version), local)
        except FileNotFoundError:
            words = f"{run}/{folder(version)} is absent, the policy to start from (init.run)"
            raise RunError("storage", words) from None
        (Path(local) / OPTIMIZER_FILE).unlink(missing_ok=True)  # of other gradients
        files = sorted(path.relative_to(local).as_posix() for path in Path(local).rglob("*") if path.is_file())
        upload(storage, local, folder(0))
    origin = {"run": run, "version": version}
    storage.write(ORIGIN, (json.dumps(origin, indent=1) + "\n").encode())
    log.event("initialised", **origin, files=files)


def initial_name(config: Config) -> str:
    """What round 0 measures, in a word or two."""
    return "pretrained" if config.init.run is None else "initial policy"


def _started_from(run_dir: str, run: str) -> int | None:
    """The version that config.yaml at `run_dir` keeps; None where no run of this origin is there."""
    text = read_run_file(run_dir, "config.yaml")
    init = (parse(text, f"{run_dir}/config.yaml").get("init") or {}) if text is not None else {}
    version = init.get("version") if isinstance(init, dict) and init.get("run") == run else None
    return version if type(version) is int else None


def _checked(config: Config, run: str, run_dir: str) -> int:
    key = f"init.run = {show(run, PATH)}"
    if "://" not in run_dir and os.path.abspath(os.path.expanduser(run_dir)) == run or run_dir.rstrip("/") == run:
        raise UserError(f"{key}: is this run's own directory; allowed: that of an earlier run")
    if "://" not in run and not os.path.isdir(run):
        raise UserError(f"{key}: no such directory; allowed: the --run-dir of an earlier `dav-ray run`")
    try:
        stored = read_run(run)
    except (UserError, OSError) as error:
        raise UserError(f"init.run: {' '.join(str(error).split())}; allowed: an earlier run's directory") from None
    if mistakes := list(_misfits(config, stored.config, run)):
        raise UserError(mistakes)
    return chosen(stored, config.init.version, "init.version =")


def _misfits(config: Config, earlier: Config, run: str) -> Iterator[str]:
    """Why the policy of `run` does not fit the model of `config`: one line per key."""
    adapters = SAME_ADAPTERS if config.mstep.parameters == earlier.mstep.parameters == "lora" else ()
    for key in (*SAME, *adapters):
        mine, its = _value(config, key), _value(earlier, key)
        unknown = key == "model.length" and None in (mine, its)  # the model's own
        if _plain(key, mine) != _plain(key, its) and not unknown:
            yield f"{key} = {show(mine)}: init.run = {show(run, PATH)} was made with {show(its)}; allowed: that"


def _value(config: Config, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return list(value) if isinstance(value, tuple) else value


def _plain(key: str, value: Any) -> Any:
    """Paths that lead to the same place are the same."""
    if key == "model.path" and os.path.exists(os.path.expanduser(value)):
        return os.path.realpath(os.path.expanduser(value))
    return value
