"""Whole runs of other kinds: streamed, with gradients and full weights, with a reward that fails."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.support.runs import events, finish, masked_recipe, recipe, shards, start, weights
from tests.support.tiny import save_tiny

SMALL = ("roles.search.replicas=1", "roles.train.replicas=1")  # starts in half the time
NAN = """
import torch

class Nan:
    differentiable = False
    def __call__(self, samples, conditions):
        return torch.full((len(samples),), float("nan"))
"""
RAISING = """
class Raises:
    def __call__(self, samples, conditions):
        return helper(samples)

class Broken:
    def __init__(self):
        open("/nope/model.pt")

    def __call__(self, samples, conditions): ...

def helper(samples):
    return {}["here"]
"""
OBJECTIVE = """
def nothing(loss, weights, kl, batch, times=1.0):
    return 0.0 * times * loss.nll.sum()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("run")
    save_tiny(place)
    return place


@pytest.mark.slow  # a whole run; tests/runtime/search/test_evidence.py has the error, what is kept and the exit code
def test_a_nan_reward_ends_the_run_and_names_itself(tmp_path: Path) -> None:
    (tmp_path / "own_rewards.py").write_text(NAN)
    process = start(tmp_path, str(masked_recipe(tmp_path)), "reward.kind=own_rewards:Nan", "--run-dir", "nan")
    output = finish(process, 1)
    (line,) = [line for line in output.splitlines() if line.startswith("dav-ray: ")]
    assert "Nan" in line and "nan" in line and "chunk" in line
    (kept,) = (tmp_path / "nan/quarantine").glob("*.json")
    assert f"evidence: quarantine/{kept.name}" in line and kept.with_suffix(".npz").exists()
    assert f"ask again: dav-ray try-reward --again nan/quarantine/{kept.name}" in line
    assert json.loads((tmp_path / "nan/manifest.json").read_text())["shards"] == []


@pytest.mark.slow  # two runs that end early; tests/run_dir/test_tracebacks.py has what they say
@pytest.mark.parametrize("name", ["Raises", "Broken"])
def test_the_users_own_traceback_is_on_the_terminal_and_in_the_events(tmp_path: Path, name: str) -> None:
    own = tmp_path / "own_rewards.py"
    own.write_text(RAISING)
    words = f"reward.kind=own_rewards.py:{name}", "--run-dir", "run"
    output = finish(start(tmp_path, str(masked_recipe(tmp_path)), *words), 1).splitlines()
    (at,) = [i for i, line in enumerate(output) if line.startswith("dav-ray: ")]
    error, place = ("KeyError: 'here'", "helper") if name == "Raises" else ("FileNotFoundError", "__init__")
    begin = max(i for i, line in enumerate(output[:at]) if line == "Traceback (most recent call last):")
    told = output[begin:at]
    assert any(line.startswith(f'  File "{own}", line ') and line.endswith(f", in {place}") for line in told)
    assert told[-1].startswith(error) and error in output[at] and len(told) <= 15
    assert not any("dav_ray/rewards" in line for line in told)
    (failed,) = [event for event in events(tmp_path / "run") if event["event"] == "run_failed"]
    assert failed["traceback"].splitlines() == told


@pytest.mark.slow  # tests/mstep/test_own.py has what an objective does; here ranks find it
def test_ranks_train_with_an_objective_of_the_users_own(tmp_path: Path) -> None:
    """One whose gradient is zero leaves the model as it was."""
    (tmp_path / "own_objective.py").write_text(OBJECTIVE)
    path = masked_recipe(tmp_path, rounds=1)
    words = ("mstep.objective=own_objective:nothing", "mstep.args={times: 2}", "--run-dir", "run")
    output = finish(start(tmp_path, str(path), *words), 0)
    assert f"imports own_objective:nothing from {tmp_path}/own_objective.py (mstep.objective)" in output
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "run/policy/v0001"))
    assert before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    (fitted,) = [line for line in lines if line["role"] == "mstep"]
    assert fitted["mstep/grad_norm"] == 0 < fitted["mstep/optimizer_steps"]


@pytest.mark.slow  # by default jobs/chaos.py's short lane streams
def test_streaming_into_the_trainer_changes_no_bit(folder: Path) -> None:
    """With a search whose particles share a chunk: each prompt's trajectories carry its own log Z_hat."""
    groups, smc = str(recipe(folder, rounds=1)), ("search.kind=smc", "search.particles=2", "mstep.group=1")
    for overlap in ("none", "stream"):
        finish(start(folder, groups, *smc, f"overlap={overlap}", *SMALL, "--run-dir", overlap), 0)
    assert shards(folder / "stream") == shards(folder / "none")
    assert weights(folder / "stream", 1) == weights(folder / "none", 1)
    rows = pa.concat_tables([pq.read_table(path) for path in sorted((folder / "none/buffer").rglob("*.parquet"))])
    pairs = set(zip(*(rows.column(name).to_pylist() for name in ("chunk", "condition", "log_weight")), strict=True))
    assert rows.column("condition").to_pylist() == ["a"] * 3 + ["b"] * 2 + ["c"] * 2
    assert len(pairs) == len({pair[:2] for pair in pairs}) == 4


@pytest.mark.slow
def test_gradients_full_weights_and_trajectory_weights(folder: Path) -> None:
    """What the other runs leave out, in one: the tilt through a remote reward, an anchor that needs the reference."""
    import dav_ray

    words = ["reward.kind=brightness", "search.gradient=true", "search.anchor=geometric(0.5)"]
    words += ["mstep.parameters=full", "mstep.weights=trajectory", "mstep.learning_rate=0.01"]
    finish(start(folder, str(recipe(folder, rounds=1)), *words, *SMALL, "--run-dir", "full"), 0)
    lines = [json.loads(line) for line in (folder / "full/metrics.jsonl").read_text().splitlines()]
    search = next(line for line in lines if line["role"] == "search")
    assert search["search/nfe_per_sample"] == 4 + 3 * 2  # T + (T-1) M
    assert search["search/reference_per_sample"] == 4
    assert search["search/reward_calls"] == 7 * (4 * 2 + 4)  # every candidate, and every parent's gradient
    assert 1 < search["search/weight_ess"] <= 7
    trained = dav_ray.load(str(folder / "full")).unet.state_dict()
    pretrained = dav_ray.load(str(folder / "full"), version=0).unet.state_dict()
    assert all(not torch.equal(trained[name], pretrained[name]) for name in ("conv_in.weight", "conv_out.weight"))
