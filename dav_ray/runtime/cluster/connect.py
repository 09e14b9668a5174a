"""Connecting to Ray: to a cluster, or to one that is started on this machine for the run alone."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import ray
from ray import exceptions

from dav_ray.config.plan import local_cpus
from dav_ray.config.schema import Config
from dav_ray.errors import RunError, UserError
from dav_ray.runtime.cluster import ray_private
from dav_ray.runtime.cluster.placement import with_cwd
from dav_ray.runtime.interrupt import entangled, interrupted

STARTS = 3  # of Ray on this machine, before a busy one is given up
TIMED_OUT = "timed out during startup"  # what Ray says of a node that took more than half a minute


@contextlib.contextmanager
def connected(address: str, config: Config | None, worker: str | None = None) -> Iterator[None]:
    """A connection to Ray: an embedded one for `local` (ended afterwards), else the cluster at `address`.

    config: sets how many CPUs an embedded one has; None: those of this machine. worker: the command that starts a
    worker of the embedded one in place of the interpreter's (`dav_ray.runtime.template`).
    UserError: there is no cluster at the address; RunError: Ray does not start on this machine.
    """
    settings: dict[str, Any] = {}
    options: dict[str, Any] = {
        "address": address,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
    }
    if address == "local":
        cpus = local_cpus(config, os.cpu_count() or 1) if config is not None else None
        os.environ["PYTHONPATH"] = with_cwd()  # all that Ray starts here has it
        options |= {"num_cpus": cpus, "include_dashboard": False}
        if worker is not None:
            # what Ray would start ahead are plain workers, of no use to this run
            options |= {"runtime_env": {"py_executable": worker}}
            settings = {"prestart_worker_first_driver": False}
    # the run's events have what matters of them; `notices` says where descriptor 2 leads
    ray_private.divert_notices(_write_notice)
    start(address, options, settings)
    try:
        yield
    finally:
        if not interrupted() and not entangled():
            ray.shutdown()


def cluster_name() -> str:
    """Ray's name of the cluster's life: another one after its head was started again."""
    return ray.get_runtime_context().get_session_name()


def _write_notice(data: Mapping[str, Any], **_: Any) -> None:
    words = "".join(f"({data.get('pid')}) {line}\n" for line in data.get("lines", ()))
    os.write(2, words.encode(errors="backslashreplace"))


def start(address: str, options: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """`ray.init`, again where a busy machine did not start Ray in the time that Ray gives itself.

    options: its arguments; settings: Ray's own, of an embedded cluster. UserError: there is no cluster at the address;
    RunError: Ray does not start on this machine.
    """
    os.environ.setdefault("RAY_SCHEDULER_EVENTS", "0")
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    # who asks for the answer of a call tells what it raised; the table that comes with it raises the same, unasked
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    # a worker that was given no GPU must not see any
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    for attempt in range(1, STARTS + 1):
        try:
            ray_private.init(options, settings)
            return
        except (ConnectionError, ValueError, RuntimeError, exceptions.RayError) as error:
            raise UserError(
                f"--address {address}: {str(error).splitlines()[0]}; allowed: auto, local or HOST:PORT"
            ) from error
        except Exception as error:  # Ray has no class for it
            if TIMED_OUT not in str(error):
                raise
            ray.shutdown()
            if attempt == STARTS:
                raise RunError(
                    "driver", f"Ray did not start on this machine in {STARTS} times 30 s: {error}"
                ) from error
