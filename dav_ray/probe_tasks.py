"""The driver's side of probed batches: a task with a search worker's resources, then one with a rank's."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
from ray import exceptions

from dav_ray.batches import Batches
from dav_ray.config import Config
from dav_ray.doctor.probes import last_line
from dav_ray.doctor.refusal import refuse_misfits
from dav_ray.errors import DavRayError, RunError
from dav_ray.failures import unwrap
from dav_ray.placement import GB
from dav_ray.recipe import Recipe, from_yaml, with_batches
from dav_ray.roles import Role
from dav_ray.storage import Storage
from dav_ray.tasks import run_as

if TYPE_CHECKING:
    from dav_ray.probing import Probed

PROBE_S = 600.0  # longest time of one role's probe, beside what its start may take


def settle(recipe: Recipe, storage: Storage) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with the sizes that the run has, and the fields of the event that tells of their measurement: none
    where they are given, or the run directory has them from before. RunError naming the role that could not be probed;
    UserError where one could never be placed."""
    if recipe.config.batches == "given":
        return recipe, {}
    if storage.exists("config.yaml"):
        stored = from_yaml(storage.read("config.yaml").decode(), f"{storage.uri}/config.yaml").config
        if stored.batches == "probed":
            return with_batches(recipe, Batches.of(stored)), {}
    refuse_misfits(recipe.config)
    roles = recipe.config.roles
    search: Probed = _ask("search", roles.search, recipe.config)
    train: Probed = _ask("train", roles.train, recipe.config)
    batches = replace(search.batches, train=train.batches.train)
    measured = {
        name: [{"size": one.size, "per_s": round(one.rate, 3), "gb": round(one.peak / GB, 3)} for one in found]
        for name, found in (search.measured | train.measured).items()
    }
    return with_batches(recipe, batches), {**batches.by_key(), "measured": measured}


def _ask(name: str, role: Role, config: Config) -> Any:
    timeout_s = role.start_timeout_s + PROBE_S
    try:
        return run_as(role, _probe, name, config, timeout_s=timeout_s)
    except TimeoutError:
        words = f"its batches were not probed in {timeout_s:.0f} s (roles.{name}.start_timeout_s + {PROBE_S:.0f} s)"
        raise RunError(name, f"{words}; see dav-ray doctor") from None
    except exceptions.RayError as error:
        cause = unwrap(error)
        if isinstance(cause, DavRayError):
            raise cause from error
        raise RunError(name, f"its batches could not be probed: {last_line(error)}") from error


def _probe(name: str, config: Config) -> Probed:
    from dav_ray.probing import probe_search, probe_train

    device = "cuda" if ray.get_gpu_ids() else "cpu"  # what Ray gave, not what there is
    return probe_search(config, device) if name == "search" else probe_train(config, device)
