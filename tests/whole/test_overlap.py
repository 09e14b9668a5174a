"""Overlap by rounds: the next round is searched, with the policy of one round earlier, while this one is fitted."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dav_ray.config.recipe.load import load
from dav_ray.errors import UserError
from dav_ray.report.table import read_metrics
from dav_ray.run_dir.storage.uri import open_storage
from tests.support.deadlines import hung
from tests.support.runs import events, files, finish, masked_recipe, shards, start, wait_for

WEIGHTS = "policy/*/*.safetensors"
SLOW = """
import time
from dav_ray.rewards.sequence import GcContent

class Slow(GcContent):
    def __call__(self, samples, conditions):
        time.sleep(0.3)
        return super().__call__(samples, conditions)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("overlap")
    (place / "own_rewards.py").write_text(SLOW)
    mstep = {"learning_rate": 0.01, "batch_size": 16, "lora": {"targets": ["convs"]}, "weights": "trajectory"}
    masked_recipe(place, rounds=3, mstep=mstep)
    return place


def run(folder: Path, name: str, *words: str) -> Any:
    return start(folder, "tiny.yaml", "overlap=round", *words, "--run-dir", name)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """An undisturbed run."""
    finish(run(folder, "whole"), 0)
    return folder / "whole"


def versions(run_dir: Path) -> dict[str, set[int]]:
    """Policy versions that a round's rows and shards name."""
    found: dict[str, set[int]] = {}
    for file in sorted((run_dir / "manifests").glob("*.json")):
        manifest = json.loads(file.read_text())
        rows = [pq.read_table(run_dir / shard["path"]) for shard in manifest["shards"]]
        named = {version for table in rows for version in table.column("policy_version").to_pylist()}
        found[file.stem] = named | {shard["policy_version"] for shard in manifest["shards"]}
        assert manifest["policy_version"] in named
    return found


@pytest.mark.slow  # a run of three rounds; the version that searches a round, and what is refused, are tested below
def test_a_round_is_searched_with_the_policy_of_one_round_earlier(whole: Path) -> None:
    assert versions(whole) == {"round-0001": {0}, "round-0002": {0}, "round-0003": {1}}
    assert len(shards(whole)) == 9
    manifest = json.loads((whole / "manifest.json").read_text())
    assert (manifest["phase"], manifest["closed"], manifest["ahead"]) == ("done", 3, [])


@pytest.mark.slow
def test_the_next_round_is_committed_before_this_ones_policy_is_there(whole: Path) -> None:
    found = [event for event in events(whole) if event["event"] in ("chunk_committed", "policy_written")]
    order = [f"round {event['round']}" if "round" in event else f"v{event['version']}" for event in found]
    assert order == [*["round 1"] * 3, *["round 2"] * 3, "v1", *["round 3"] * 3, "v2", "v3"]


@pytest.mark.slow
def test_every_round_tells_its_time_and_who_was_busy(whole: Path) -> None:
    metrics = read_metrics(open_storage(str(whole)))
    assert "time/round_s" not in metrics[0, "evaluate"]
    for number in (1, 2, 3):
        line = metrics[number, "evaluate"]
        assert line["time/round_s"] > line["time/evaluate_s"]
        assert 0 < line["busy/search"] <= 1 and 0 <= line["busy/train"] <= 1
        assert metrics[number, "mstep"]["mstep/rows"] == 12
        assert metrics[number, "search"]["time/estep_s"] > 0
    assert metrics[1, "evaluate"]["busy/train"] > 0
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert sum(line["role"] == "search" for line in lines) == 3  # what was searched ahead is told once


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_driver_goes_on_in_the_middle_of_a_search_ahead(folder: Path, whole: Path) -> None:
    slow = ("reward.kind=own_rewards:Slow", "reward.name=gc_content")
    process = run(folder, "killed", *slow)
    wait_for(folder / "killed", "chunk_committed", 4, process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=hung(60))
    left = json.loads((folder / "killed/manifest.json").read_text())
    assert (left["round"], left["phase"], len(left["shards"])) == (1, "fit", 3)
    assert 1 <= len(left["ahead"]) < 3 and {shard["policy_version"] for shard in left["ahead"]} == {0}

    finish(run(folder, "killed", *slow), 0)
    committed = [(e["round"], e["chunk"]) for e in events(folder / "killed") if e["event"] == "chunk_committed"]
    assert len(committed) == len(set(committed)) == 9
    # the reward is the same function, slower: so are shards and weights
    assert shards(folder / "killed") == shards(whole)
    assert files(folder / "killed", WEIGHTS) == files(whole, WEIGHTS) != {}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_is_stopped_while_it_evaluates_goes_on(folder: Path, whole: Path) -> None:
    """The trainer has the next round by then; its policy, if it wrote one, is written again."""
    process = run(folder, "stopped")
    wait_for(folder / "stopped", "policy_written", 1, process)
    process.send_signal(signal.SIGTERM)
    finish(process, 143)
    left = json.loads((folder / "stopped/manifest.json").read_text())
    assert left["policy_version"] == 1 and left["closed"] <= 1

    finish(run(folder, "stopped"), 0)
    assert shards(folder / "stopped") == shards(whole)
    assert files(folder / "stopped", WEIGHTS) == files(whole, WEIGHTS) != {}
    lines = [json.loads(line) for line in (folder / "stopped/metrics.jsonl").read_text().splitlines()]
    assert sorted(line["round"] for line in lines if line["role"] == "search") == [1, 2, 3]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("search.kind=refine", "overlap=round"),
            "overlap = round: search kind refine starts from the last round, which is not closed by then; "
            "allowed: none, stream, or search.warm_start = off",
        ),
        (
            ("roles.train.lifetime=round", "overlap=stream"),
            "overlap = stream: with roles.train.lifetime = round there are no ranks during the search; "
            "allowed: none, or roles.train.lifetime = run",
        ),
    ],
)
def test_what_does_not_go_with_overlap_is_refused(words: tuple[str, ...], line: str) -> None:
    with pytest.raises(UserError) as caught:
        load("digits", ("mstep.candidates=winner", *words))
    assert str(caught.value).splitlines() == [line]


@pytest.mark.parametrize(
    "words", [("search.kind=refine", "search.warm_start=off", "overlap=round"), ("roles.train.lifetime=round",)]
)
def test_what_goes_with_overlap_is_accepted(words: tuple[str, ...]) -> None:
    load("digits", ("mstep.candidates=winner", *words))


@pytest.mark.parametrize(
    ("overlap", "expected"), [("none", [0, 1, 2, 3]), ("stream", [0, 1, 2, 3]), ("round", [0, 0, 1, 2])]
)
def test_the_version_that_searches_a_round(overlap: str, expected: list[int]) -> None:
    config = load("digits", (f"overlap={overlap}",)).config
    assert [config.searching_version(number) for number in (1, 2, 3, 4)] == expected
