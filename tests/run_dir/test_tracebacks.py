"""Where the user's own code failed: which lines are theirs, that they travel, that they are shown and hide secrets."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dav_ray import redact
from dav_ray.errors import DataError, RewardError, RunError
from dav_ray.registry import load
from dav_ray.rewards.base import evaluate, local_scorer
from dav_ray.run_dir.records import RunLog
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.run_dir.tracebacks import HEADER, MOST_LINES, as_field, own_part, shown
from dav_ray.runtime.cluster.failures import start_failure
from dav_ray.runtime.driver import failures

OWN = """\
def reward(samples, conditions):
    return deeper(samples, 12)

def deeper(samples, depth):
    if depth:
        return deeper(samples, depth - 1) + 0
    raise KeyError("no such letters")

def wrapped(samples, conditions):
    try:
        return {}["a"]
    except KeyError as error:
        raise ValueError("worse") from error

def through_ours(samples, conditions):
    from dav_ray.rewards.sequence import GcContent
    return GcContent()(samples, conditions)
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own_failing.py").write_text(OWN)
    return tmp_path / "own_failing.py"


def trace(own: Path, name: str) -> list[str]:
    return own_part(evaluate(load(f"{own}:{name}"), np.zeros((2, 3), np.float32), ["", ""], False).trace)


def test_only_the_users_frames_and_the_last_lines(own: Path) -> None:
    lines = trace(own, "wrapped")
    assert lines[:3] == [HEADER, f'  File "{own}", line 11, in wrapped', '    return {}["a"]']
    assert lines[-1] == "ValueError: worse" and "KeyError: 'a'" in lines
    assert "The above exception was the direct cause of the following exception:" in lines
    assert not any("dav_ray/rewards/base.py" in line for line in lines)
    deep = trace(own, "reward")
    assert len(deep) == MOST_LINES and deep[:2] == [HEADER, "  ..."] and deep[-1] == "KeyError: 'no such letters'"


def test_our_frames_below_theirs_stay_and_none_of_theirs_is_nothing(own: Path) -> None:
    lines = trace(own, "through_ours")
    assert f'File "{own}", line 17' in lines[1] and any("rewards/sequence.py" in line for line in lines)
    listed = evaluate(lambda samples, conditions: [1.0], np.zeros((1, 2)), [""], False)  # type: ignore[arg-type]
    assert listed.error and own_part(listed.trace) == [] and own_part(None) == own_part("no traceback") == []


def test_words_of_ray_are_read_too() -> None:
    text = (
        "The actor died because of an error raised in its creation task, \x1b[36mray::reward-0-0:RewardActor.__init__()"
        "\x1b[39m (pid=7, ip=1.2.3.4, actor_id=f, repr=<x>)\n"
        f'  File "{Path(sys.modules["dav_ray"].__file__ or "").parent}/rewards/actor.py", line 33, in __init__\n'
        "    self._reward = build(kind, args)\n"
        '  File "/home/me/own.py", line 5, in __init__\n    self.model = torch.load(path)\n'
        '  File "/x/site-packages/torch/serialization.py", line 9, in load\n    ^^^^\n'
        "FileNotFoundError: [Errno 2] No such file or directory: '/nope/model.pt'"
    )
    failure = start_failure("reward", "reward-0-0", RuntimeError(text))
    assert str(failure).startswith("reward: reward-0-0 did not start: FileNotFoundError: [Errno 2]")
    assert as_field(failure)["traceback"].splitlines() == [
        HEADER,
        '  File "/home/me/own.py", line 5, in __init__',
        "    self.model = torch.load(path)",
        '  File "/x/site-packages/torch/serialization.py", line 9, in load',
        "    ^^^^",
        "FileNotFoundError: [Errno 2] No such file or directory: '/nope/model.pt'",
    ]


@pytest.mark.parametrize("error", [RunError("reward", "x"), DataError("search", "x"), RewardError("a", "3", "nan")])
def test_a_trace_travels_with_its_error(error: RunError) -> None:
    error.trace = "where"
    copies = [pickle.loads(pickle.dumps(error))]
    copies += [error.kept_in("quarantine/x.json")] if isinstance(error, DataError) else []
    assert [copy.trace for copy in copies] == ["where"] * len(copies)


def test_the_event_that_ends_a_run_holds_it_and_no_secret(own: Path, tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "run"))
    redact.remember("TOKEN", "letters-that-nobody-sees")
    own.write_text(OWN.replace("no such letters", "letters-that-nobody-sees"))
    scorer = local_scorer([("mine", 1.0, load(f"{own}:reward"))]).of("3 of round 1")
    import torch

    with pytest.raises(RewardError) as caught, failures(RunLog(storage, 1)):
        scorer.score(torch.zeros(2, 3), ["", ""])
    (event,) = [json.loads(line) for line in storage.read_lines("events.jsonl")]
    assert event["event"] == "run_failed" and f'File "{own}", line 7, in deeper' in event["traceback"]
    for text in (event["traceback"], event["cause"], "\n".join(shown(caught.value, whole=True))):
        assert "letters-that-nobody-sees" not in text and "${oc.env:TOKEN}" in text


CLI = """
import sys
from dav_ray.cli.failures import exit_codes
from dav_ray.errors import RewardError
error = RewardError("mine", "3 of round 1", "KeyError: 7", kept="quarantine/x y.json")
error.trace = 'Traceback (most recent call last):\\n  File "/home/me/own.py", line 5, in f\\n    g()\\nKeyError: 7\\n'
with exit_codes("runs/a"):
    raise (OSError("disk") if "disk" in sys.argv else error)
"""


def said(*words: str, **environment: str) -> list[str]:
    import os

    code = [sys.executable, "-c", CLI, *words]
    env = {name: value for name, value in os.environ.items() if name != "DAV_RAY_TRACEBACK"} | environment
    done = subprocess.run(code, capture_output=True, text=True, env=env)
    return done.stderr.splitlines()


def test_the_terminal_shows_it_and_names_the_command_to_ask_again() -> None:
    lines = said()
    last = [i for i, line in enumerate(lines) if line.startswith("dav-ray: ")][0]
    assert lines[:last] == [HEADER, '  File "/home/me/own.py", line 5, in f', "    g()", "KeyError: 7"]
    assert lines[last] == (
        "dav-ray: reward: mine gave KeyError: 7 for chunk 3 of round 1; evidence: quarantine/x y.json (log: "
        "runs/a/events.jsonl; ask again: dav-ray try-reward --again 'runs/a/quarantine/x y.json')"
    )
    assert not any('File "<string>"' in line for line in lines[:last])
    whole = said(DAV_RAY_TRACEBACK="1")
    assert (
        any('File "<string>", line 8' in line for line in whole) and '  File "/home/me/own.py", line 5, in f' in whole
    )
    disk = said("disk", DAV_RAY_TRACEBACK="1")
    assert disk[0] == HEADER and "dav-ray: storage: OSError: disk" in disk
