"""Columns of the prompts travel with a reward's replicas, and with search workers where rewards there want them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dav_ray.config.recipe.load import Recipe, load
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.runtime.cluster import device
from dav_ray.runtime.reward.fleet import reward_specs
from dav_ray.runtime.reward.replica import RewardActor
from dav_ray.runtime.search.rewards import WorkerRewards, with_stored_columns
from dav_ray.runtime.search.workers import MOST_BYTES, worker_spec

REWARD = """
import torch

class Count:
    differentiable = False
    prompt_columns = ("count",)

    def __call__(self, samples, conditions, columns):
        return torch.tensor(columns["count"], dtype=torch.float64)
"""
SAMPLES = np.zeros((3, 3, 2, 2), np.float32)


def recipe(folder: Path, num: int, *overrides: str) -> Recipe:
    (folder / "counting.py").write_text(REWARD)
    rows = [{"prompt": f"p{i}", "count": i} for i in range(num)]
    (folder / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    kind = f"reward={{kind: '{folder}/counting.py:Count'}}"
    return load("digits", ["evaluate.heldout=[]", f"prompts={folder}/p.jsonl", kind, *overrides])


def test_a_replica_is_built_with_the_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "given_device", lambda: "cpu")
    (spec,) = reward_specs(recipe(tmp_path, 9).config, "name")
    replica = RewardActor(*pickle.loads(pickle.dumps(spec)).built)
    assert replica.reproduce(SAMPLES, ["p4", "p8", "p4"], False).values.tolist() == [4, 8, 4]
    assert "has no column count" in replica.reproduce(SAMPLES, ["p4", "p9", "p4"], False).error


def test_a_search_worker_has_them_where_rewards_there_want_them(tmp_path: Path) -> None:
    few, many = (recipe(tmp_path, num, "reward.where=search") for num in (9, 3000))
    assert worker_spec(few.config, "run", "name").config.prompts == few.config.prompts

    spec = worker_spec(many.config, "run", "name")
    assert spec.stored_columns and spec.config.prompts == () and len(pickle.dumps(spec)) < 2 * MOST_BYTES
    storage = open_storage(str(tmp_path / "run"))
    storage.write("config.yaml", many.yaml.encode())
    found = with_stored_columns(spec.config, storage)
    pool: Any = None
    rewards = WorkerRewards(found, pool, storage, "cpu")
    (scored,) = rewards(SAMPLES, ["p4", "p2999", "p4"], False)
    assert scored.values is not None and scored.values.tolist() == [4, 2999, 4]


def test_nothing_is_read_where_no_reward_there_wants_columns(tmp_path: Path) -> None:
    spec = worker_spec(recipe(tmp_path, 3000).config, "run", "name")
    assert not spec.stored_columns and spec.config.prompts == ()
