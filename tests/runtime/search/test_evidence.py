"""A search worker whose reward gives NaN: a named error, evidence in the run directory, no shard, exit code 1."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import typer

from dav_ray.cli.failures import exit_codes
from dav_ray.config.recipe.load import load
from dav_ray.errors import RewardError
from dav_ray.run_dir.marker import write_marker
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.runtime.search.worker import SearchActor, WorkerSpec
from dav_ray.types import Chunk
from tests.support.runs import masked_recipe

NAN = """
import torch

class Nan:
    differentiable = False

    def __call__(self, samples, conditions):
        return torch.full((len(samples),), float("nan"))
"""
CHUNK = Chunk(7, 1, 3, 0, (12, 13), ("", ""))


@pytest.fixture
def failed(shared_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RewardError:
    """What the search of a chunk raises, in this process."""
    (tmp_path / "own_rewards.py").write_text(NAN)
    here: dict[str, Any] = {
        "get_node_id": "f00",
        "get_worker_id": "f01",
        "get_actor_name": "search-0-1",
        "is_canceled": False,
    }
    here["get_node_labels"] = {}
    context = SimpleNamespace(**{name: lambda value=value: value for name, value in here.items()})
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    reward = f"reward={{kind: {tmp_path}/own_rewards.py:Nan, where: search}}"
    config = load(str(masked_recipe(tmp_path)), [reward]).config
    write_marker(open_storage(str(tmp_path / "run")))
    worker = SearchActor(WorkerSpec(config, str(tmp_path / "run"), "space", "no fleet", 10.0, "no mailbox"))
    with pytest.raises(RewardError) as caught:
        worker.search(CHUNK)
    return caught.value


def test_the_chunk_fails_with_evidence_and_leaves_no_shard(failed: RewardError, tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "run"))
    name = "quarantine/round-0001-chunk-00003-nan.json"
    assert failed.kept == name and storage.list("buffer") == []
    assert str(failed) == f"reward: Nan gave nan for sample 0 of 4 for chunk 3 of round 1; evidence: {name}"
    record = json.loads(storage.read(name))
    assert (record["worker"], record["node"], record["what"]) == ("search-0-1", "f00", "nan")
    assert record["rows"] == [0, 1, 2, 3]
    assert storage.exists(name.replace(".json", ".npz")) and "RewardError" in record["trace"]


def test_the_command_ends_with_code_1_and_one_line(failed: RewardError, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, exit_codes("runs/a"):
        raise failed
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dav-ray: ")]
    assert ended.value.exit_code == 1 and f"evidence: {failed.kept}" in line
    assert "ask again: dav-ray try-reward --again runs/a/quarantine/round-0001-chunk-00003-nan.json" in line
