"""A reward under an interpreter of its own: what it finds there, and what it needs of this environment."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import ray

from dav_ray.config.checks.preflight import check
from dav_ray.config.recipe.load import load
from dav_ray.config.schema import Config
from dav_ray.config.sections.roles import Role
from dav_ray.errors import UserError
from dav_ray.run_dir.marker import write_marker
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.runtime.cluster.connect import connected
from dav_ray.runtime.cluster.placement import OWN_PYTHON, runtime_env
from dav_ray.runtime.reward.fleet import FLEET, FleetStart, reward_specs, start_fleet
from dav_ray.runtime.reward.replica import FleetClient
from tests.support.deadlines import hung

# what such an environment need not have; the last one is what the test's own reward asks for
ABSENT = ("pydantic", "omegaconf", "obstore", "transformers", "diffusers", "accelerate", "pandas", "typer")
REWARD = """
import sys
import probe_version  # in the reward's own environment alone
import torch

class Where:
    differentiable = False
    def __init__(self, prefix):
        self.here = sys.prefix == prefix
    def __call__(self, samples, conditions):
        return samples.flatten(1).sum(1) * probe_version.NUMBER + (100.0 if self.here else -1.0)
"""


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The interpreter of an environment that has this one's packages, less ABSENT, and one that this has not."""
    home = tmp_path / "an environment"
    venv.EnvBuilder(symlinks=True).create(home)
    (site,) = home.glob("lib/python*/site-packages")
    for name in ABSENT:
        (site / f"{name}.py").write_text(f"raise ModuleNotFoundError({name!r})\n")
    (site / "probe_version.py").write_text("NUMBER = 3\n")
    (site / "these.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")  # a .pth comes after the folder itself
    return home / "bin" / "python"


def configuration(python: Path, prefix: Path) -> Config:
    reward = {"kind": "where:Where", "args": {"prefix": str(prefix)}, "python": str(python)}
    roles = {"reward": {"replicas": 2, "cpus": 0.1, "start_timeout_s": hung(90)}}
    return Config.model_validate({"model": {"path": "none"}, "prompts": ["a"], "reward": reward, "roles": roles})


def test_what_a_reward_actor_imports_is_there_without_the_rest(other: Path, tmp_path: Path) -> None:
    write_marker(open_storage(str(tmp_path / "run")))
    code = """
import sys, numpy, dav_ray.runtime.reward.replica
from dav_ray.rewards.registry import resolve
from dav_ray.rewards.base import evaluate
from dav_ray.run_dir.marker import check_marker
from dav_ray.run_dir.storage.uri import open_storage
check_marker(open_storage(sys.argv[1]), "node")
print(evaluate(resolve("brightness")(), numpy.full((1, 3, 2, 2), 0.5, numpy.float32), [""], True).values)
print(resolve("torch_oracle").differentiable, resolve("enformer").differentiable)
"""
    env = {**os.environ, "PYTHONPATH": str(OWN_PYTHON)}
    done = subprocess.run(
        [other, "-c", code, tmp_path / "run"], capture_output=True, text=True, cwd=tmp_path, env=env, timeout=hung(120)
    )

    assert done.stdout.splitlines() == ["[0.5]", "True True"], done.stderr
    assert (tmp_path / "run" / "marker" / "node").read_bytes() == b"dav_ray"


@pytest.mark.slow
def test_the_actors_run_there(other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "where.py").write_text(REWARD)
    config, run_dir = configuration(other, other.parents[1]), str(tmp_path / "run")
    write_marker(open_storage(run_dir))
    assert importlib.util.find_spec("probe_version") is None

    with connected("local", config):
        fleet = start_fleet(reward_specs(config, "test"), run_dir, "test")
        FleetStart(fleet, config).wait()
        ask = FleetClient(FLEET, "test", 90)
        answers = [ask(np.full((2, 5), 2.0, np.float32), ["a"] * 2, False) for _ in range(2)]
        ray.kill(fleet)

    assert [(scored.error, scored.values.tolist()) for (scored,) in answers] == [(None, [130.0, 130.0])] * 2


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """What preflight says of a recipe with this override."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("model: {path: org/name}\nprompts: [cat]\nreward: {kind: brightness}\n")

    def ask(override: str, address: str) -> list[str]:
        try:
            check(load("mine.yaml", [override]).config, address)
        except UserError as error:
            return error.lines
        return []

    return ask


def test_interpreters_that_will_not_do(tmp_path: Path, lines: Callable[..., list[str]]) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "old").write_text("#!/bin/sh\necho Python 3.8, ray 2.9.0\n")
    (tmp_path / "bare").write_text("#!/bin/sh\necho Traceback >&2; echo ray is missing >&2; exit 1\n")
    for name in ("old", "bare"):
        (tmp_path / name).chmod(0o755)
    rule = "allowed: the absolute path of an interpreter with the same Python and ray"
    version = f"Python 3.{sys.version_info[1]}, ray {ray.__version__}"
    for name, words in (
        ("file", f"can't be run ([Errno 13] Permission denied: '{tmp_path}/file'); {rule}"),
        ("nowhere", f"can't be run ([Errno 2] No such file or directory: '{tmp_path}/nowhere'); {rule}"),
        ("old", f"has Python 3.8, ray 2.9.0; here is {version}; {rule}"),
        ("bare", f"has no ray (ray is missing); {rule}"),
    ):
        python = f"{tmp_path}/{name}"
        override = f"reward={{kind: brightness, python: '{python}'}}"
        assert lines(override, "local") == [f"reward.python = {python}: {words}"]
        assert lines(override, "head:6379") == []  # it is on another machine
    override = "reward={kind: brightness, python: venv/bin/python}"
    assert lines(override, "head:6379") == [f"reward.python = venv/bin/python: is relative; {rule}"]


def test_interpreters_that_will_do(lines: Callable[..., list[str]]) -> None:
    own = f"kind: 'there.alone:Reward', python: '{sys.executable}'"
    assert lines(f"reward={{{own}}}", "local") == []  # its class is not looked for: what it imports may be there alone
    (heldout,) = lines(f"evaluate.heldout=[{{{own}}}]", "local")
    assert heldout.startswith(f"evaluate.heldout.python = {sys.executable}: held-out measures run inside the search")


def test_no_interpreter_no_runtime_environment() -> None:
    assert runtime_env(Role()) == {}
    assert runtime_env(Role(), "/a b/python")["py_executable"] == "'/a b/python'"
