"""Wrong input of every kind: one clear line each, the right exit code, nothing heavy imported, nothing harmed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import bad_files, bad_recipes
from tests.support.bad_input import Case
from tests.support.deadlines import hung, stretched
from tests.support.places import ROOT

CASES: list[Case] = [*bad_recipes.CASES, *bad_files.CASES]
SECRET = "hunter2-secret"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bad")


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[int, dict[str, Any]]:
    """What the command said to each case: one interpreter for all of them."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "DAV_", "AWS_"))}
    env |= {"PYTHONPATH": str(ROOT), "DAV_SECRET": SECRET, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tests.support.bad_input", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=hung(250))
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"number"')]
    return {record["number"]: record for record in records}


def test_there_are_many_and_no_two_are_the_same() -> None:
    assert len({case.words for case in CASES}) == len(CASES) >= 240


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: f"{n}-{CASES[n].start[:40]}")
def test_one_line_says_what_is_wrong(number: int, answers: dict[int, dict[str, Any]], folder: Path) -> None:
    case, found = CASES[number], answers[number]
    lines = found["stderr"].splitlines()
    assert found["raised"] == "" and found["code"] == case.code, (found, case)
    assert lines and all(line.startswith("dav-ray: ") for line in lines)
    here = [line.replace(f"{folder}/", "") for line in lines]  # paths are shown absolute
    said = [line.removeprefix("dav-ray: ").removeprefix("storage: ") for line in here]
    assert any(line.startswith(case.start) or case.start[:1] == "/" and case.start in line for line in said), lines
    text = found["stderr"] + found["stdout"]
    assert "Traceback" not in text and "unexpected: " not in text and SECRET not in text
    assert text.isprintable() or all(c.isprintable() or c == "\n" for c in text)
    assert max(map(len, lines)) < 700
    assert case.heavy or found["heavy"] == [], found["heavy"]
    assert found["seconds"] < stretched(20)


def test_nothing_was_run_or_harmed(folder: Path, answers: dict[int, dict[str, Any]]) -> None:
    assert answers
    assert not (folder / "harm").exists() and not list(folder.parent.glob("slipped*"))
    assert (folder / "foreign" / "thesis.tex").exists() and os.listdir(folder / "foreign") == ["thesis.tex"]
    assert json.loads((folder / "runs/whole/manifest.json").read_text()) == bad_files.MANIFEST
