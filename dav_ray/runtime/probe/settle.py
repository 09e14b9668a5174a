"""The driver's side of probed batches: a task with a search worker's resources, then one with a rank's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ray import exceptions

from dav_ray.config.batches import Batches
from dav_ray.config.recipe.load import Recipe, from_yaml, with_batches
from dav_ray.config.schema import Config
from dav_ray.config.sections.roles import Role
from dav_ray.errors import DavRayError, RunError
from dav_ray.run_dir.storage.interface import Storage
from dav_ray.runtime.cluster.deadlines import Deadline
from dav_ray.runtime.cluster.device import given_device
from dav_ray.runtime.cluster.failures import last_line, unwrap
from dav_ray.runtime.cluster.placement import GB, run_as

if TYPE_CHECKING:
    from dav_ray.runtime.probe.probing import Probed

PROBE_S = 600.0  # longest time of one role's probe, beside what its start may take


def settle(recipe: Recipe, storage: Storage, refuse: Callable[[Config], None]) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with the sizes that the run has, and the fields of the event that tells of their measurement: none
    where they are given, or the run directory has them from before. RunError naming the role that could not be probed;
    UserError of `refuse`, which is asked first, where one could never be placed."""
    if recipe.config.batches == "given":
        return recipe, {}
    if storage.exists("config.yaml"):
        stored = from_yaml(storage.read("config.yaml").decode(), f"{storage.uri}/config.yaml").config
        if stored.batches == "probed":
            return with_batches(recipe, Batches.of(stored)), {}
    refuse(recipe.config)
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
    deadline = Deadline(name, role.start_timeout_s + PROBE_S, f"start_timeout_s + {PROBE_S:.0f} s")
    try:
        return run_as(role, _probe, name, config, timeout_s=deadline.limit_s)
    except TimeoutError:
        raise deadline.error("its batches were not probed") from None
    except exceptions.RayError as error:
        cause = unwrap(error)
        if isinstance(cause, DavRayError):
            raise cause from error
        raise RunError(name, f"its batches could not be probed: {last_line(error)}") from error


def _probe(name: str, config: Config) -> Probed:
    from dav_ray.runtime.probe.probing import probe_search, probe_train

    return probe_search(config, given_device()) if name == "search" else probe_train(config, given_device())
