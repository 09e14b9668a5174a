"""One Ray for all test files of this process that need no other: its workers are forks that have torch already.

The files ask for the fixture `shared_ray` of `tests/conftest.py`, which also sees that they leave no actor in it, and
that it is gone before another file starts a Ray of its own. Ray is imported where it starts: most files need none.
"""

from __future__ import annotations

import contextlib
import gc
import os

import psutil

from tests.support.processes import AGENTS, of_this_run, wait_for_end

OPTIONS = {"num_cpus": 4, "num_gpus": 1, "resources": {"accelerator_type:A100": 1}}
RAYS_OWN = ("ray::IDLE", "/template/launcher.py", *AGENTS)  # a worker without work; what waits for a worker's end
_open = contextlib.ExitStack()
_own: set[int] = set()  # processes of Ray itself, and the template process; none where there is no shared Ray


def start() -> None:
    """Start it, unless it is there."""
    import ray

    from dav_ray.config.recipe.load import load
    from dav_ray.runtime.cluster import ray_private
    from dav_ray.runtime.template.start import template
    from tests.support.clusters import attempts

    if _own:
        return
    before = {process.pid for process in of_this_run()}
    worker = _open.enter_context(template(load("dna").config))
    options = {"address": "local", "include_dashboard": False, "log_to_driver": False, **OPTIONS}
    options["runtime_env"] = {"py_executable": worker}
    attempts(lambda: ray_private.init(options, {"prestart_worker_first_driver": False}))
    _open.callback(ray.shutdown)
    _own.update({process.pid for process in of_this_run()} - before)


def end() -> None:
    """End it."""
    _own.clear()
    _open.close()


def left_in_it(grace_s: float = 20.0) -> list[psutil.Process]:
    """What a file's tests started, directly or as actors and tasks, and has not ended in time."""
    gc.collect()  # an actor ends with the last handle to it
    return wait_for_end(lambda: [process for process in of_this_run() if not _is_of_ray(process)], grace_s)


def is_up() -> bool:
    return bool(_own)


def _is_of_ray(process: psutil.Process) -> bool:
    if process.pid in _own or process.pid == os.getpid():
        return True
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return any(word in " ".join(process.cmdline()) for word in RAYS_OWN)
    return True  # it has ended
