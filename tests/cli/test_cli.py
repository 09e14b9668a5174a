"""The command as users run it: exit codes, one line per mistake, and nothing heavy imported on the way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import dav_ray.runtime
from dav_ray.cli import app
from dav_ray.errors import RunError, UserError
from tests.support.deadlines import hung, stretched
from tests.support.places import ROOT

HEAVY = ("torch", "ray", "diffusers", "transformers", "pandas")
RECIPE = "model: {path: org/name}\nprompts: [cat]\nreward: {kind: brightness}\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    return tmp_path


def dav(*arguments: str, script: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *([script] if script else ["-m", "dav_ray"]), *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=hung(60))


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["config"], ["run", "mine.yaml", "--dry-run"]])
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom dav_ray.cli.app import app\n"
        f"try: app({arguments!r})\nexcept SystemExit as done: assert done.code == 0, done.code\n"
        f"print('HEAVY', sorted(set(sys.modules) & set({HEAVY!r})))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=hung(60))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_bad_input_is_quick_and_exits_2(folder: Path) -> None:
    dav("--version")  # the disk's cache is not what is measured
    started = time.monotonic()
    done = dav("run", "mine.yaml", "search.alhpa=1", "search.gamma=2")
    assert time.monotonic() - started < stretched(2)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "dav-ray: search.gamma = 2: out of range; allowed: a number > 0 and <= 1",
        "dav-ray: search.alhpa: unknown key; did you mean search.alpha?",
    ]
    assert not (folder / "runs").exists()


def test_the_jobs_script_is_the_same_command() -> None:
    done = dav("mine.yaml", "--dry-run", script=str(ROOT / "jobs" / "align.py"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("nothing was started")
    assert dav("nowhere.yaml", script=str(ROOT / "jobs" / "align.py")).returncode == 2


def invoke(*arguments: str) -> tuple[int, list[str], str]:
    """Exit code, lines on stderr, stdout."""
    result = CliRunner().invoke(app.app, list(arguments))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stderr.splitlines(), result.stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run", "nowhere.yaml"], "dav-ray: recipe nowhere.yaml: no such file; shipped recipes: digits, "),
        (["run", "mine.yaml", "seed=x"], "dav-ray: seed = x: wrong type; allowed: a whole number >= 0"),
        (["run", "mine.yaml", "reward.kind=nope"], "dav-ray: reward.kind = nope: unknown reward; allowed: "),
        (["run", "mine.yaml", "--run-dir", "mine.yaml"], "dav-ray: --run-dir mine.yaml: "),
        (
            ["run", "mine.yaml", "--address", "ray://h:1"],
            "dav-ray: --address ray://h:1: a run can't go through Ray",
        ),
        (
            ["doctor", "mine.yaml", "--address", "nowhere"],
            "dav-ray: --address nowhere: is no address; allowed: auto",
        ),
        (["doctor", "nope"], "dav-ray: recipe nope: no such file; shipped recipes: "),
        (
            ["report", "nowhere"],
            "dav-ray: nowhere: no such directory; allowed: the --run-dir of a `dav-ray run`",
        ),
        (["report", "."], "dav-ray: .: is no run directory (it has no config.yaml); allowed: "),
        (["evaluate", "nowhere"], "dav-ray: nowhere: no such directory; allowed: "),
        (["sample", "nowhere", "--num", "1", "--out", "x"], "dav-ray: nowhere: no such directory; allowed: "),
    ],
)
def test_mistakes_exit_2_with_one_line(arguments: list[str], line: str) -> None:
    code, errors, output = invoke(*arguments)
    assert (code, len(errors), output) == (2, 1, "")
    assert errors[0].startswith(line)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rnu", "x"], "Did you mean 'run'?"),
        (["sample", ".", "--num", "0", "--out", "x"], "--num"),
        (["run", "mine.yaml", "--adress", "auto"], "--address"),
        (["run"], "RECIPE"),
    ],
)
def test_usage_mistakes_exit_2(arguments: list[str], words: str) -> None:
    code, errors, _ = invoke(*arguments)
    assert code == 2
    assert words in errors[-1]


def test_dry_run_prints_configuration_and_plan() -> None:
    code, errors, output = invoke("run", "mine.yaml", "search.candidates=16", "--dry-run")
    assert (code, errors) == (0, [])
    assert "candidates: 16" in output and "learning_rate: 0.001" in output
    assert "785" in output
    assert f"run directory: {os.getcwd()}/runs/mine" in output


class Driver:
    """Stands in for `dav_ray.runtime.driver`."""

    def __init__(self, error: BaseException | None) -> None:
        self.error, self.calls = error, []

    def run(self, recipe: object, run_dir: str, address: str) -> None:
        self.calls.append((run_dir, address))
        if self.error:
            raise self.error


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (None, 0, []),
        (UserError(["one", "two"]), 2, ["dav-ray: one", "dav-ray: two"]),
        (
            RunError("train", "out of memory"),
            1,
            ["dav-ray: train: out of memory (log: runs/mine/events.jsonl)"],
        ),
        (KeyboardInterrupt(), 130, []),
        (SystemExit(143), 143, []),
    ],
)
def test_exit_codes_of_a_run(
    error: BaseException | None, code: int, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(error)
    monkeypatch.setitem(sys.modules, "dav_ray.runtime.driver", driver)
    monkeypatch.setattr(dav_ray.runtime, "driver", driver, raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert invoke("run", "mine.yaml")[:2] == (code, lines)
    assert driver.calls == [("runs/mine", "auto")]


def test_a_machine_with_fewer_cores_than_the_recipe_counts_on_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from dav_ray.config import plan

    monkeypatch.setitem(sys.modules, "dav_ray.runtime.driver", Driver(None))
    monkeypatch.setattr(dav_ray.runtime, "driver", Driver(None), raising=False)
    monkeypatch.setattr(plan, "cores", lambda: 2)
    words = ["run", "mine.yaml", "roles.search.cpus=2"]
    line = "2 CPUs here, the recipe counts on 5: everything runs, slower\n"
    assert invoke(*words) == (0, [], line)
    assert invoke(*words, "--address", "auto") == (0, [], "")  # a cluster has what it has
    monkeypatch.setattr(plan, "cores", lambda: 5)
    assert invoke(*words) == (0, [], "")


def test_completion_of_a_shell_is_there() -> None:
    command = "import sys; sys.argv[0] = 'dav-ray'; from dav_ray.cli.app import main; main()"
    env = {"_DAV_RAY_COMPLETE": "complete_bash", "COMP_WORDS": "dav-ray co", "COMP_CWORD": "1"}
    env = {**os.environ, **env, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, env=env, timeout=hung(60))
    assert done.stdout.split() == ["config"]
    assert "--install-completion" in invoke("--help")[2]


def test_version() -> None:
    assert invoke("--version")[2].strip() == dav_ray.__version__
