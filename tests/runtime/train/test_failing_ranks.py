"""A whole run whose ranks can't build what search workers could: told at once, ended soon, and gone on with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.runs import events, finish, masked_recipe, start

BROKEN = """
from typing import Any

from dav_ray.cli import app
from dav_ray.runtime.train import rank

loop = rank.train_loop


def broken(settings: dict[str, Any]) -> None:
    from dav_ray.config import build

    def build(*words: Any, **options: Any) -> Any:
        raise OSError("Cannot load model of ours")

    build.build = build
    loop(settings)


rank.train_loop = broken
app.main()
"""


@pytest.mark.slow
def test_a_run_ends_with_what_its_ranks_said_and_goes_on_once_they_are_mended(tmp_path: Path) -> None:
    masked_recipe(tmp_path, rounds=1)
    (tmp_path / "broken.py").write_text(BROKEN)
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    words = [sys.executable, "broken.py", "run", "tiny.yaml", "--run-dir", "run"]
    process = subprocess.Popen(
        words, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    output = finish(process, 1)
    told = [event for event in events(tmp_path / "run") if event["event"] == "rank_failed"]
    assert [event["cause"] for event in told] == 2 * ["OSError: Cannot load model of ours"]
    assert "train: rank 0 failed and is started again: OSError: Cannot load model of ours (log on node " in output
    assert 'raise OSError("Cannot load model of ours")' in output
    assert "dav-ray: train: rank 0 failed twice with the same OSError: Cannot load model of ours" in output
    assert "Cannot load model of ours" in Path(told[0]["log"]).read_text()
    finish(start(tmp_path, "tiny.yaml", "--run-dir", "run"), 0)
