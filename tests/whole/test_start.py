"""How a run starts: what travels with its actors, what is tried again, what a terminal does not show."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from dav_ray.config.recipe.load import load
from dav_ray.errors import RunError
from dav_ray.runtime.cluster import connect, ray_private
from dav_ray.runtime.cluster.connect import STARTS, connected
from dav_ray.runtime.cluster.notices import notices_file
from dav_ray.runtime.search.workers import worker_spec
from tests.support.deadlines import hung

SMALL = 100_000  # bytes: what is larger Ray puts into the object store, where a restart may not find it


def test_what_a_search_actor_is_built_from_is_small_whatever_the_prompts(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(f"a photograph of the animal number {i}" for i in range(40_000)))
    config = load("digits", [f"prompts={tmp_path / 'prompts.txt'}"]).config
    assert len(pickle.dumps(config)) > 10 * SMALL
    spec = worker_spec(config, str(tmp_path), "name")
    assert len(pickle.dumps(spec)) < SMALL
    assert spec.config.search == config.search and spec.config.model == config.model


class Starts:
    """Ray's start on a machine that is too busy, so many times."""

    def __init__(self, busy: int) -> None:
        self.busy, self.calls, self.ended = busy, 0, 0

    def init(self, **_: Any) -> None:
        self.calls += 1
        if self.calls <= self.busy:
            raise Exception("The current node timed out during startup. This could happen because ...")

    def shutdown(self) -> None:
        self.ended += 1


@pytest.mark.parametrize("busy", [0, STARTS - 1, STARTS])
def test_a_node_that_takes_too_long_to_start_is_started_again(monkeypatch: pytest.MonkeyPatch, busy: int) -> None:
    starts = Starts(busy)
    monkeypatch.setattr(ray, "init", starts.init)
    monkeypatch.setattr(ray, "shutdown", starts.shutdown)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    config = load("digits").config
    if busy == STARTS:
        with (
            pytest.raises(RunError, match="Ray did not start on this machine in 3 times 30 s"),
            connected("local", config),
        ):
            pass
    else:
        with connected("local", config):
            assert (starts.calls, starts.ended) == (busy + 1, busy)


def test_what_nodes_say_is_not_printed_among_a_runs_lines(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    from ray._private import worker

    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)
    ray_private.divert_notices(connect._write_notice)
    worker.print_to_stdstream({"lines": ["8 PYTHON workers"], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    assert capfd.readouterr() == ("", "(raylet) 8 PYTHON workers\n")


NATIVE = """
import logging, os, sys
from pathlib import Path
from dav_ray.runtime.cluster.notices import kept_in
logging.basicConfig(stream=sys.stderr)
with kept_in(Path("ray.log")):
    os.write(2, b"native\\n")
    logging.error("early logger")
    print("a traceback", file=sys.stderr)
    os.system("echo child >&2")
os.write(2, b"after\\n")
"""


def test_native_notices_go_to_a_file_and_python_errors_to_the_terminal(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NATIVE], cwd=tmp_path, capture_output=True, text=True, timeout=hung(60)
    )
    assert done.stderr == "a traceback\nafter\n"
    assert (tmp_path / "ray.log").read_text() == "native\nERROR:root:early logger\nchild\n"


def test_notices_of_a_run_in_an_object_store_stay_on_this_machine(tmp_path: Path) -> None:
    assert notices_file(str(tmp_path)) == tmp_path / "ray.log"
    assert f"dav_ray-{os.getpid()}" in str(notices_file("s3://bucket/run"))
