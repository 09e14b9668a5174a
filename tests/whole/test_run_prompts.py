"""A run over prompts with weights and columns: rewards get the columns wherever they run, and the run goes on."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dav_ray.config.partition import round_prompts
from tests.support.runs import finish, recipe, shards, start

REWARD = """
import torch

class Count:
    differentiable = False
    prompt_columns = ("count",)

    def __call__(self, samples, conditions, columns):
        return torch.tensor(columns["count"], dtype=torch.float64)

class Twice(Count):
    def __call__(self, samples, conditions, columns):
        return 2 * super().__call__(samples, conditions, columns)
"""
COUNTS, WEIGHTS = {"a": 3, "b": 5, "c": 7}, (1.0, 1.0, 4.0)


@pytest.mark.slow
def test_rewards_get_the_columns_of_their_samples_prompts(tiny_folder: str, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "pipeline")
    (tmp_path / "counting.py").write_text(REWARD)
    rows = [{"prompt": p, "count": n, "weight": w} for (p, n), w in zip(COUNTS.items(), WEIGHTS, strict=True)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rewards = [{"kind": "counting:Count"}, {"kind": "counting:Twice", "where": "search"}]
    heldout = [{"kind": "counting:Count", "name": "measured"}]
    evaluate = {"samples": 6, "batch": 4, "kl_samples": 2, "grid": 6, "heldout": heldout}
    recipe(tmp_path, prompts="prompts.jsonl", reward=rewards, evaluate=evaluate)
    words = ["tiny.yaml", "--run-dir", "run", "--address", "local"]

    finish(start(tmp_path, *words, "rounds=1"), 0)
    before = shards(tmp_path / "run")
    finish(start(tmp_path, *words), 0)  # goes on
    after = shards(tmp_path / "run")
    assert before.items() < after.items()

    tables = [pq.read_table(tmp_path / "run" / path) for path in after]
    found = {1: Counter[str](), 2: Counter[str]()}
    for table in tables:
        for row in table.select(["round", "condition", "reward", "reward/Count", "reward/Twice"]).to_pylist():
            count = COUNTS[row["condition"]]
            assert (row["reward/Count"], row["reward/Twice"], row["reward"]) == (count, 2 * count, 3 * count)
            found[row["round"]][row["condition"]] += 1
    for round, drawn in found.items():
        assert drawn == Counter(round_prompts([*COUNTS], round, 7, together=False, weights=WEIGHTS))

    measured = pq.read_table(tmp_path / "run/evaluate/round-0002.parquet")
    assert measured["condition"].to_pylist() == ["a", "b", "c"] * 2  # whatever their weights
    assert measured["heldout/measured"].to_pylist() == [3.0, 5.0, 7.0] * 2
