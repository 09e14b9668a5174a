"""The package's functions for users."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from dav_ray.config.families.table import family_of
from dav_ray.config.model_path import check_there
from dav_ray.errors import UserError
from dav_ray.run_dir.policy_files import folder, versions
from dav_ray.run_dir.storage.folders import download


def load(run_dir: str, version: int | None = None) -> Any:
    """The aligned model of a run, ready to sample: a `StableDiffusionPipeline` with a DDIM scheduler, or a
    `MaskedDiffusion`.

    version: a policy version; default: the last one. UserError if there is no run at `run_dir`, or none of this
    version in it.
    """
    from dav_ray.config.build import aligned, pretrained
    from dav_ray.config.stored import read_run

    stored = read_run(run_dir)
    version = stored.manifest.policy_version if version is None else version
    there = versions(stored.storage)
    plain = version == 0 and 0 not in there
    if plain or not family_of(stored.config.model).whole_policy:
        check_there(stored.config.model.path, f"{run_dir}/config.yaml")
    if plain:
        return pretrained(stored.config)
    if version not in there:
        first = "the policy that the run started from" if 0 in there else "the pretrained model"
        known = ", ".join(map(str, sorted({0, *there})))
        raise UserError(f"{run_dir}: has no policy of version {version}; allowed: {known} (0: {first})")
    with tempfile.TemporaryDirectory() as local:
        download(stored.storage, folder(version), local)
        return aligned(stored.config, Path(local))
