"""The driver's side of the template process: when there is one, what it imports, how workers find it."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from dav_ray.config.families.table import family_of
from dav_ray.config.schema import Config
from dav_ray.runtime.interrupt import interrupted

LAUNCHER = Path(__file__).with_name("launcher.py")
END_S = 5.0
COMMON = (
    "torch",
    "pyarrow.parquet",
    "safetensors.torch",
    "dav_ray.run_dir.shards",
    "dav_ray.evaluation.measure",
    "dav_ray.search.dav",
)


def helps(config: Config) -> bool:
    """Whether all roles are plain processes of this machine: a process that has touched a GPU must not be forked, and
    one of another environment has imports of its own."""
    roles = config.roles
    own = [override for reward in config.reward for override in (reward.role, reward.python) if override is not None]
    roles_alike = all(
        not (role.gpus or role.python or role.pip or role.container)
        for role in (roles.search, roles.reward, roles.train)
    )
    return sys.platform == "linux" and roles_alike and not own


def imports(config: Config) -> list[str]:
    """What the workers of this run import, in order."""
    found = [*COMMON, *family_of(config.model).preload(config.model)]
    if config.mstep.parameters == "lora":
        found.append("peft")
    return found


@contextlib.contextmanager
def template(config: Config) -> Iterator[str | None]:
    """The command that starts a worker in place of the interpreter's; None where workers start plainly."""
    if not helps(config):
        yield None
        return
    folder = tempfile.mkdtemp(prefix="dav_ray-")  # nobody else may enter it, nor connect
    words = [sys.executable, "-m", "dav_ray.runtime.template.process", f"{folder}/socket", *imports(config)]
    # threads of libraries would not be in a fork: none are started
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, start_new_session=True
    )
    try:
        yield shlex.join([sys.executable, "-S", "-E", str(LAUNCHER), f"{folder}/socket"])
    finally:
        if interrupted():  # at once, with its forks: what is still at an import hears nothing until that is over
            shutil.rmtree(folder, ignore_errors=True)
            _kill(process.pid)
        if process.stdin is not None:
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
        shutil.rmtree(folder, ignore_errors=True)


def _kill(pid: int) -> None:
    """A process and all that it started, which start nothing meanwhile."""
    with contextlib.suppress(psutil.NoSuchProcess):
        template = psutil.Process(pid)
        template.suspend()
        for process in (*template.children(recursive=True), template):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
