"""Whole runs whose reward is in the pool or in the search workers: the same shards, other bytes on the way."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.runtime.reward.test_fleet_run import metrics
from tests.support.runs import events, finish, recipe, shards, start
from tests.support.tiny import save_tiny
from tests.whole.test_run_kinds import SMALL


@pytest.mark.slow
@pytest.mark.timeout(900)  # three runs
def test_where_a_reward_runs_decides_what_is_sent_and_nothing_else(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    here = {"kind": "jpeg_compressibility", "where": "search"}
    (tmp_path / "own.py").write_text(
        "from dav_ray.rewards.jpeg import JpegCompressibility\n"
        "class Floats(JpegCompressibility):\n"
        "    wants = 'float32'\n"
    )
    floats = {"kind": "own:Floats", "name": "jpeg_compressibility"}
    for name, reward in (("pool", {"kind": "jpeg_compressibility"}), ("here", here), ("floats", floats)):
        mine = recipe(tmp_path, rounds=1, reward=reward)
        finish(start(tmp_path, str(mine), *SMALL, "--run-dir", name), 0)

    assert shards(tmp_path / "here") == shards(tmp_path / "pool") == shards(tmp_path / "floats")
    searched = {name: metrics(tmp_path / name, "search")[0] for name in ("pool", "here", "floats")}
    shard = next((tmp_path / "pool").glob("buffer/*/*.parquet"))
    image = len(pq.read_table(shard).column("sample")[0].as_py())  # pixels, one byte each
    sent = {name: row["search/reward_bytes_per_sample"] for name, row in searched.items()}
    calls = searched["pool"]["search/reward_calls"] / 7
    assert sent == {"pool": pytest.approx(calls * image), "here": 0, "floats": pytest.approx(calls * image * 4)}
    placed = {name: {e["role"] for e in events(tmp_path / name) if e["event"] == "actor_placed"} for name in sent}
    assert placed["here"] == {"search"} | (placed["pool"] - {"reward"}) and "reward" in placed["pool"]
    stored = [event for event in events(tmp_path / "here") if event["event"] == "golden_stored"]
    assert [event["reward"] for event in stored] == ["jpeg_compressibility"]
