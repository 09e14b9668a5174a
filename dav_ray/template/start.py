"""The driver's side of the template process: when there is one, what it imports, how workers are told of it."""

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

from dav_ray.config import Config
from dav_ray.model_folder import model_parts

LAUNCHER = Path(__file__).with_name("launcher.py")
END_S = 5.0
COMMON = ("torch", "pyarrow.parquet", "safetensors.torch", "dav_ray.buffer", "dav_ray.evaluate", "dav_ray.search.dav")
FAMILIES = {
    "masked": ("dav_ray.diffusion.masked", "dav_ray.diffusion.elbo"),
    "diffusers": ("dav_ray.diffusion.stable_diffusion", "diffusers:StableDiffusionPipeline", "diffusers:DDIMScheduler"),
}


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
    found = [*COMMON, *FAMILIES[config.model.kind]]
    if config.model.kind == "diffusers":
        found += [f"{library}:{name}" for library, name in model_parts(config.model.path)]
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
    words = [sys.executable, "-m", "dav_ray.template.process", f"{folder}/socket", *imports(config)]
    # threads of libraries would not be in a fork: none are started
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, start_new_session=True
    )
    try:
        yield shlex.join([sys.executable, "-S", "-E", str(LAUNCHER), f"{folder}/socket"])
    finally:
        if process.stdin is not None:
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
        shutil.rmtree(folder, ignore_errors=True)
