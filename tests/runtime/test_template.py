"""Workers that are forked from a template process are told from plain ones by nothing but their start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dav_ray.config.recipe.load import load
from dav_ray.config.schema import Config
from dav_ray.runtime.template.start import LAUNCHER, helps, imports, template
from tests.support.deadlines import hung, until

SCRIPT = """
import json, os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
told = {"argv": sys.argv[1:], "env": os.environ.get("COLOUR"), "gone": os.environ.get("HOME"), "cwd": os.getcwd()}
told |= {"preloaded": "colorsys" in sys.modules, "name": __name__, "first": sys.path[0], "pid": os.getpid()}
told |= {"group": os.getpgid(0)}
told |= {"files": sorted(int(name) for name in os.listdir("/proc/self/fd"))[:3], "main": __file__}
print(json.dumps(told), flush=True)
print("trouble", file=sys.stderr, flush=True)
if sys.argv[1:] == ["wait"]:
    time.sleep(60)
sys.exit(int(sys.argv[1]) if sys.argv[1:] else 0)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    return file


@pytest.fixture
def socket(tmp_path: Path) -> Iterator[str]:
    """The socket of a template process that has imported one module of the standard library, and missed another."""
    path = str(tmp_path / "socket")
    words = [sys.executable, "-m", "dav_ray.runtime.template.process", path, "no_such_module", "colorsys:rgb_to_hsv"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE)
    until(lambda: os.path.exists(path), "no socket", process=process, pause_s=0.02)
    yield path
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(hung(20)) == 0  # it ends with the pipe that its driver holds


def launch(socket: str, script: Path, *words: str, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-S", "-E", str(LAUNCHER), socket, str(script), *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **{**pipes, **options})  # type: ignore[call-overload]


@pytest.mark.parametrize("code", [0, 3])
def test_a_worker_has_the_commands_arguments_environment_folder_and_status(
    socket: str, script: Path, tmp_path: Path, code: int
) -> None:
    environment = {"COLOUR": "red", "PATH": os.environ["PATH"]}
    process = launch(socket, script, str(code), cwd=tmp_path, env=environment)
    out, err = process.communicate(timeout=hung(60))
    told = json.loads(out)
    assert process.returncode == code and err == "trouble\n"
    assert (told["argv"], told["env"], told["gone"], told["cwd"]) == ([str(code)], "red", None, str(tmp_path))
    assert (told["name"], told["first"], told["main"]) == ("__main__", str(tmp_path), str(script))
    assert told["group"] == told["pid"]  # Ray ends a worker with its process group
    assert told["preloaded"] and told["files"] == [0, 1, 2] and told["pid"] != process.pid


def test_without_a_template_process_a_plain_worker_starts(script: Path, tmp_path: Path) -> None:
    process = launch(str(tmp_path / "nobody"), script, "4")
    told = json.loads(process.communicate(timeout=hung(60))[0])
    assert process.returncode == 4 and not told["preloaded"] and told["pid"] == process.pid


def test_a_signal_to_the_launcher_reaches_its_worker(socket: str, script: Path) -> None:
    process = launch(socket, script, "wait")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(hung(20)) == 7


def test_a_worker_dies_with_its_launcher(socket: str, script: Path) -> None:
    process = launch(socket, script, "wait")
    assert process.stdout is not None
    worker = json.loads(process.stdout.readline())["pid"]
    process.kill()
    until(lambda: not Path(f"/proc/{worker}").exists(), "it lives on", 20, pause_s=0.05)


def test_workers_run_side_by_side(socket: str, script: Path) -> None:
    waiting = launch(socket, script, "wait")
    assert launch(socket, script, "5").wait(hung(20)) == 5
    waiting.terminate()
    assert waiting.wait(hung(20)) == 7


def config(*overrides: str, recipe: str = "digits") -> Config:
    return load(recipe, overrides).config


def test_what_has_a_gpu_or_an_environment_of_its_own_starts_plainly() -> None:
    assert helps(config()) and helps(config(recipe="dna"))
    assert not helps(config("roles.search.gpus=1"))
    assert not helps(config("roles.train.pip=[numpy]"))
    assert not helps(config("reward.python=/opt/other/bin/python"))
    assert not helps(config("reward.role={cpus: 2}"))
    with template(config("roles.reward.gpus=0.5")) as command:
        assert command is None


LOADED = """
import sys
from pathlib import Path
from dav_ray.runtime.template.process import preload
preload(sys.argv[1:])
missing = [target for target in sys.argv[1:] if target.partition(":")[0] not in sys.modules]
threads = {task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()}
print(missing, "ray" in sys.modules, sorted(threads - {Path("/proc/self/comm").read_text().strip()}))
"""


@pytest.mark.parametrize("recipe", [pytest.param("digits", marks=pytest.mark.thorough), "dna"])
def test_all_that_workers_import_is_there_and_neither_ray_nor_a_thread(recipe: str) -> None:
    """Ray reads the environment of its worker when it is loaded; a thread would not be in a fork, but for that of
    Arrow's allocator, which starts it again."""
    words = [sys.executable, "-c", LOADED, *imports(config(recipe=recipe))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=hung(300))
    assert done.stdout.strip() in ("[] False []", "[] False ['jemalloc_bg_thd']"), done.stdout + done.stderr
