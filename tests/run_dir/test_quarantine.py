"""Data that fails ends the run, and leaves evidence: what is kept, by contents; whole runs, by exit code."""

from __future__ import annotations

import io
import json
import pickle
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from torch import Tensor

from dav_ray.errors import DataError, RewardError
from dav_ray.evaluation.rescore import asked_again
from dav_ray.rewards.base import Asked, Scored, Scorer, evaluate, local_scorer
from dav_ray.run_dir.quarantine import MOST_BYTES, Scene, evidence_path, keep
from dav_ray.run_dir.storage.interface import Storage
from dav_ray.types import Chunk, EvaluationChunk
from tests.support.runs import events, finish, masked_model, shards, start

CHUNK = Chunk(7, 3, 12, 2, (24, 25, 26), ("a", "b", "ü"))
SCENE = Scene("search-0-1", "f00", 4711, "Traceback: ...", {"dav_ray": "1"})
SAMPLES = torch.arange(3 * 4.0).reshape(3, 4)


def brightness(samples: Tensor, conditions: Any) -> Tensor:
    return samples.sum(1)


def answering(values: Any) -> Callable[[Tensor, Any], Any]:
    return lambda samples, conditions: values


def raising(samples: Tensor, conditions: Any) -> Tensor:
    raise ValueError("no such letters")


def slope(samples: Tensor, conditions: Any) -> Tensor:
    return samples.sum(1).sqrt()  # at zero it is infinitely steep


def caught(reward: Any, samples: Tensor = SAMPLES, grad: bool = False) -> DataError:
    scorer: Scorer = local_scorer([("fine", 1.0, brightness), ("judge", 1.0, reward)]).of(CHUNK.name)
    with pytest.raises(DataError) as info:
        (scorer.score_and_grad if grad else scorer.score)(samples, CHUNK.conditions)
    return info.value


def kept(storage: Storage, error: DataError) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    named = keep(storage, CHUNK, error, SCENE)
    assert named.kept is not None and str(named) == f"{error}; evidence: {named.kept}"
    record = json.loads(storage.read(named.kept))
    with np.load(io.BytesIO(storage.read(record["samples"])), allow_pickle=False) as held:
        return record, dict(held)


def test_the_evidence_says_what_was_asked_and_answered(storage: Storage) -> None:
    nan = torch.tensor([1.0, torch.nan, -torch.inf])
    record, arrays = kept(storage, caught(answering(nan)))
    assert storage.list("quarantine") == [
        "quarantine/round-0003-chunk-00012-nan.json",
        "quarantine/round-0003-chunk-00012-nan.npz",
    ]
    assert record["error"] == "reward: judge gave nan for sample 1 of 3 for chunk 12 of round 3"
    assert (record["what"], record["rows"], record["asked"], record["kept"]) == ("nan", [1], 3, 1)
    assert record["chunk"] == {
        "kind": "Chunk",
        "seed": 7,
        "round": 3,
        "index": 12,
        "policy_version": 2,
        "trajectories": [24, 25, 26],
        "conditions": ["a", "b", "ü"],
        "alpha": None,
    }
    assert (record["worker"], record["node"], record["pid"]) == ("search-0-1", "f00", 4711)
    assert record["trace"] == "Traceback: ..." and record["versions"] == {"dav_ray": "1"}
    assert [answer["reward"] for answer in record["answers"]] == ["fine", "judge"]
    place = shlex.quote(f"{storage.uri}/quarantine/round-0003-chunk-00012-nan.json")
    assert record["again"] == f"dav-ray try-reward --again {place}"
    assert arrays["samples"].tolist() == [[4, 5, 6, 7]]
    assert (arrays["row"].tolist(), arrays["condition"].tolist()) == ([1], ["b"])
    assert arrays["value/0"].tolist() == [22.0] and np.isnan(arrays["value/1"]).tolist() == [True]


def test_where_no_sample_is_known_to_be_at_fault_all_are_kept(tmp_path: Path) -> None:
    from dav_ray.run_dir.storage.uri import open_storage

    storage = open_storage(str(tmp_path))
    record, arrays = kept(storage, caught(raising))
    assert (record["what"], record["rows"], record["kept"]) == ("raised", [], 3)
    judge = record["answers"][1]
    assert judge["error"] == "ValueError: no such letters" and "in raising" in judge["traceback"]
    assert arrays["samples"].tolist() == SAMPLES.tolist() and "value/1" not in arrays

    record, arrays = kept(storage, caught(answering(torch.tensor([[1.0], [2.0], [3.0]]))))
    assert (record["what"], record["answers"][1]["shape"]) == ("shape", [3, 1])
    assert arrays["answer/1"].tolist() == [[1], [2], [3]] and arrays["value/0"].tolist() == [6, 22, 38]

    asked = Asked(np.zeros((40, MOST_BYTES // 80), np.float32), ["a"] * 40, (), ())
    error = DataError("search", "much", "sample")
    error.evidence = asked
    record, arrays = kept(storage, error)
    assert (record["asked"], record["kept"]) == (40, 20)
    assert arrays["samples"].nbytes <= MOST_BYTES


def test_samples_that_are_not_finite_are_kept(tmp_path: Path) -> None:
    from dav_ray.run_dir.storage.uri import open_storage

    samples = SAMPLES.clone()
    samples[2, 1] = torch.inf
    error = caught(brightness, samples)
    assert str(error) == "search: the model gave a sample that is not finite in chunk 12 of round 3"
    record, arrays = kept(open_storage(str(tmp_path)), error)
    assert (record["what"], record["rows"], record["answers"]) == ("sample", [2], [])
    assert arrays["samples"].tolist() == [[8, np.inf, 10, 11]] and arrays["condition"].tolist() == ["ü"]


def test_a_gradient_that_is_not_finite_is_kept(tmp_path: Path) -> None:
    from dav_ray.run_dir.storage.uri import open_storage

    samples = SAMPLES.clone()
    samples[1] = 0
    record, arrays = kept(open_storage(str(tmp_path)), caught(slope, samples, grad=True))
    assert (record["what"], record["rows"]) == ("gradient", [1])
    assert arrays["gradient/0"].tolist() == [[1, 1, 1, 1]] and np.isinf(arrays["gradient/1"]).all()


def test_names_tell_what_it_was() -> None:
    assert evidence_path(CHUNK, "inf") == "quarantine/round-0003-chunk-00012-inf"
    fresh = EvaluationChunk(2, 5, 2, (0,), (9,), ("a",), False)
    assert evidence_path(fresh, "KeyError") == "quarantine/evaluation-0002-chunk-00005-keyerror"


@pytest.mark.parametrize("error", [DataError("search", "a\nb", "nan", (1, 2)), RewardError("judge", "3", "nan", "nan")])
def test_what_is_kept_stays_with_the_error_and_the_evidence_does_not_travel(error: DataError) -> None:
    error.evidence = Asked(np.zeros(10**6), (), (), ())
    copy = pickle.loads(pickle.dumps(error.kept_in("quarantine/x.json")))
    assert type(copy) is type(error) and copy.evidence is None
    assert (copy.kept, copy.what, copy.rows) == ("quarantine/x.json", error.what, error.rows)
    assert str(copy) == f"{error}; evidence: quarantine/x.json"
    assert len(pickle.dumps(error)) < 1000


def test_evaluate_says_where_an_error_came_from() -> None:
    scored: Scored = evaluate(raising, SAMPLES.numpy(), ("a",) * 3, False)  # type: ignore[arg-type]
    assert scored.error == "ValueError: no such letters"
    assert scored.trace is not None and scored.trace.rstrip().endswith("ValueError: no such letters")


OWN = """
import time
from pathlib import Path

import torch

class Fickle:
    differentiable = False

    def __call__(self, samples, conditions):
        values = (samples == 1).double().mean(1)
        if not Path(__file__).with_name("mended").exists():
            time.sleep(0.5)
            values[[condition == "fixed=3:GATTACA" for condition in conditions]] = float("nan")
        return values
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of 4 chunks a round. Of the prompts one is the known sample's, in the last chunk of the first round."""
    place = tmp_path_factory.mktemp("quarantine")
    (place / "own_rewards.py").write_text(OWN)
    prompts = [f"fixed=3:{text}" for text in ("A", "C", "G", "T", "AA", "CC", "GG", "TT", "AAA", "CCC", "GATTACA", "T")]
    settings: dict[str, Any] = {
        "rounds": 1,
        "model": {"kind": "masked", "path": masked_model(place)},
        "prompts": prompts,
        "reward": {"kind": "own_rewards:Fickle"},
        "search": {"candidates": 2, "alpha": 0.02, "steps": 3, "trajectories": 12, "chunk": 3},
        "mstep": {"batch_size": 16, "lora": {"targets": ["convs"]}},
        "evaluate": {"samples": 4, "batch": 4, "kl_samples": 0},
        "roles": {name: {"replicas": 1, "cpus": 0.1} for name in ("search", "reward", "train")},
    }
    (place / "tiny.yaml").write_text(yaml.safe_dump(settings))
    return place


@pytest.mark.slow
@pytest.mark.timeout(900)  # two runs
def test_a_reward_that_fails_for_one_sample_stops_the_run_which_goes_on_once_it_is_mended(folder: Path) -> None:
    run = folder / "run"
    output = finish(start(folder, "tiny.yaml", "--run-dir", "run"), 1, 400)
    (line,) = [line for line in output.splitlines() if line.startswith("dav-ray: ")]
    name = "quarantine/round-0001-chunk-00003-nan.json"
    assert f"reward: Fickle gave nan for sample 2 of 6 for chunk 3 of round 1; evidence: {name} (log: " in line
    assert "Traceback" not in output

    record = json.loads((run / name).read_text())
    assert record["chunk"]["trajectories"] == [9, 10, 11] and record["rows"] == [2, 3]  # both candidates of the second
    assert record["worker"].startswith("search-0") and "RewardError" in record["trace"]
    assert set(record["versions"]) >= {"dav_ray", "torch", "ray"} and "environ" not in (run / name).read_text()
    with np.load(run / record["samples"], allow_pickle=False) as held:
        assert held["condition"].tolist() == ["fixed=3:GATTACA"] * 2 and np.isnan(held["value/0"]).all()
        assert ["".join("ACGT"[token] for token in row[3:10]) for row in held["samples"]] == ["GATTACA"] * 2
    told = [event for event in events(run) if event["event"] == "quarantined"]
    assert [(event["worker"], event["item"], event["file"]) for event in told] == [("search-0", "3 of round 1", name)]
    before = {shard["path"]: shard["sha256"] for shard in json.loads((run / "manifest.json").read_text())["shards"]}
    assert sorted(pq.read_table(run / path)["chunk"][0].as_py() for path in before) == [0, 1, 2]

    again = [sys.executable, "-m", "dav_ray", *shlex.split(record["again"])[1:]]
    assert "Fickle: sample 2, 'fixed=3:GATTACA': nan" in subprocess.check_output(again, text=True, cwd=folder)
    (folder / "mended").touch()
    assert "nan" not in subprocess.check_output(again, text=True, cwd=folder)
    finish(start(folder, "tiny.yaml", "--run-dir", "run"), 0, 400)
    after = shards(run)
    assert before.items() < after.items() and len(after) == 4
    assert (run / name).exists()


def test_a_file_that_is_no_evidence_is_the_users_mistake(tmp_path: Path) -> None:
    from dav_ray.errors import UserError

    with pytest.raises(UserError, match=r"holds no samples .*; allowed: RUN_DIR/quarantine/NAME.json"):
        asked_again(f"{tmp_path}/quarantine/none.json")
