"""A whole run whose alpha is in standard deviations: measured once, kept, and told of where it is no good one."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.runs import events, finish, masked_recipe, shards, start, wait_for

SEARCH = {"candidates": 3, "alpha": "50 sd", "steps": 4, "trajectories": 12, "chunk": 4}


@pytest.mark.slow
def test_alpha_is_measured_once_whatever_becomes_of_the_samples(tmp_path: Path) -> None:
    """The driver is stopped in the first round, and finds other samples when it comes back."""
    words = [str(masked_recipe(tmp_path, search=SEARCH)), "--run-dir", "run"]
    run, stopped = tmp_path / "run", start(tmp_path, *words)
    wait_for(run, "chunk_committed", 1, stopped)
    stopped.send_signal(signal.SIGINT)
    said = finish(stopped, 130)
    evaluated = run / "evaluate/round-0000.parquet"
    table = pq.read_table(evaluated)
    rewards = table.column("reward").to_numpy()
    alpha = 50 * float(rewards.std())
    assert f"search.alpha = 50 sd: {alpha:.4g}, as the reward's standard deviation is {rewards.std():.4g}" in said
    place = table.column_names.index("reward")
    pq.write_table(table.set_column(place, "reward", pa.array(7 * rewards)), evaluated)

    output = finish(start(tmp_path, *words), 0)
    assert "search.alpha = 50 sd: " not in output  # it was known
    assert json.loads((run / "manifest.json").read_text())["alpha"] == alpha
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    searches = [line for line in lines if line["role"] == "search"]
    assert [line["search/alpha"] for line in searches] == [alpha] * 2
    assert {line["search/ess_most"] for line in searches} == {3.0}
    assert f"search.alpha {alpha:.4g}: 50 sd of the pretrained reward" in output and "ess of 3" in output

    told = [event for event in events(run) if event["event"] == "search_choice"]
    assert len(told) == 1 and told[0]["kind"] == "idle" and told[0]["suggested"].endswith("sd")
    assert (said + output).count("so large that the reward decides nothing; try search.alpha=") == 1
    assert len([event for event in events(run) if event["event"] == "alpha_measured"]) == 1


@pytest.mark.slow
def test_it_is_the_run_of_that_number(tmp_path: Path) -> None:
    """Shard for shard; and the advice, taken, ends the complaint."""
    recipe = str(masked_recipe(tmp_path, search=SEARCH))
    finish(start(tmp_path, recipe, "--run-dir", "sd"), 0)
    alpha = json.loads((tmp_path / "sd/manifest.json").read_text())["alpha"]
    finish(start(tmp_path, recipe, f"search.alpha={alpha!r}", "--run-dir", "number"), 0)
    assert shards(tmp_path / "sd") == shards(tmp_path / "number")
    (told,) = [event for event in events(tmp_path / "sd") if event["event"] == "search_choice"]

    output = finish(start(tmp_path, recipe, f"search.alpha={told['suggested']}", "--run-dir", "better"), 0)
    assert "candidates count in a step" not in output
    assert not [event for event in events(tmp_path / "better") if event["event"] == "search_choice"]


@pytest.mark.slow  # settled without Ray in test_measured_alpha
def test_a_constant_reward_has_no_standard_deviation(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(
        "import torch\n\n\nclass Same:\n    differentiable = False\n\n"
        "    def __call__(self, samples, conditions):\n        return torch.full((len(samples),), 0.1)\n"
    )
    recipe = str(masked_recipe(tmp_path, search=SEARCH, reward={"kind": "rewards:Same"}))
    output = finish(start(tmp_path, recipe, "--run-dir", "run"), 1)
    words = "reward: search.alpha = 50 sd: all 8 samples of the pretrained model have the reward 0.1; allowed: a number"
    assert words in output
