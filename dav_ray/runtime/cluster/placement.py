"""A role's demands in Ray's words: options of actors, environments, what a node must have; a task placed as the role
is."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dav_ray.config.sections.roles import Role
from dav_ray.runtime.cluster.deadlines import wait_until

OWN_PYTHON = Path(__file__).resolve().parent / "other_python"
GB = 10**9
RUN_POLL_S = 0.2


def actor_options(role: Role, name: str, namespace: str, python: str | None = None) -> dict[str, Any]:
    """Options of a named actor of the role; python: an interpreter in place of the role's environment."""
    options: dict[str, Any] = {
        "name": name,
        "namespace": namespace,
        "num_cpus": role.cpus,
        "num_gpus": role.gpus,
        "resources": dict(role.resources) or None,
        "max_restarts": -1,
        "max_task_retries": 0,
    }
    if role.memory_gb:
        options["memory"] = int(role.memory_gb * GB)
    if role.accelerator:
        options["accelerator_type"] = role.accelerator
    if role.labels:
        options["label_selector"] = dict(role.labels)
    if environment := runtime_env(role, python):
        options["runtime_env"] = environment
    return options


def runtime_env(role: Role, python: str | None = None) -> dict[str, Any]:
    """Ray's runtime_env of the role; empty where it lives in the driver's environment.

    Under another interpreter it finds this package and the user's own modules, and nothing else of this environment. A
    container has dav_ray in it.
    """
    if python or role.python:
        command = shlex.quote(os.path.expanduser(python or role.python or ""))  # Ray hands it to a shell
        paths = os.pathsep.join([str(OWN_PYTHON), with_cwd()])
        return {"py_executable": command, "env_vars": {"PYTHONPATH": paths}}
    if role.pip:
        return {"pip": list(role.pip)}
    return {"image_uri": role.container} if role.container else {}


def demand(role: Role) -> dict[str, float]:
    """What a node must have for one actor, by Ray's names of resources; memory in bytes."""
    named = {"CPU": role.cpus, "GPU": role.gpus, "memory": role.memory_gb * GB, **role.resources}
    if role.accelerator:
        named[f"accelerator_type:{role.accelerator}"] = 0.001  # what Ray asks for itself
    return {name: amount for name, amount in named.items() if amount}


def with_cwd() -> str:
    """PYTHONPATH with the current folder, so that a user's own reward module is found by the workers too."""
    paths = [os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.pathsep.join(dict.fromkeys(p for p in paths if p))


def run_as(role: Role, work: Callable[..., Any], *args: Any, timeout_s: float) -> Any:
    """What `work` returns, done once where an actor of the role would be, in a process of its own. TimeoutError where
    it does not return in time; Ray's error else."""
    import ray  # here: options are worked out before Ray is needed

    options = actor_options(role, "", "")
    for name in ("name", "namespace", "max_restarts", "max_task_retries"):
        del options[name]
    task: Any = ray.remote(max_calls=1)(work)  # the process ends after it, and frees what it took
    ref = task.options(**options, max_retries=0).remote(*args)
    deadline = time.monotonic() + timeout_s
    wait_until(lambda: bool(ray.wait([ref], timeout=0)[0]) or time.monotonic() > deadline, RUN_POLL_S)
    if not ray.wait([ref], timeout=0)[0]:
        ray.cancel(ref, force=True)
        raise TimeoutError
    return ray.get(ref)
