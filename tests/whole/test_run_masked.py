"""A whole run of a masked model: adapters, gradient, a class-free model with a fixed motif; what users load from it."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import dav_ray
from dav_ray.diffusion.masked.alphabet import Alphabet
from dav_ray.diffusion.masked.dilated_cnn import DilatedCNN
from dav_ray.diffusion.masked.files import Settings, write
from dav_ray.diffusion.masked.model import MaskedDiffusion
from dav_ray.run_dir.manifest import MANIFEST, ManifestStore, Shard, round_manifest_path
from dav_ray.run_dir.storage.interface import Storage
from dav_ray.run_dir.storage.uri import open_storage
from tests.support.deadlines import hung, until
from tests.support.processes import actors
from tests.support.runs import events, files, finish, shards, start

LENGTH, MOTIF, STEPS = 24, "TATA", 5
EVALUATION = 2 * LENGTH * (5 * 8 * 5 + 5 * (8 * 8 * 5) + 8 * 8 + 8 * 5)  # operations of the network's convolutions
OWN = """
from dav_ray.rewards.sequence import GcWindow

class Window(GcWindow):
    pass
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights, and a run of it, from another folder than that of the recipe, beside which are the
    model and a module of the user's own."""
    place = tmp_path_factory.mktemp("masked")
    torch.manual_seed(0)
    write(place / "model", DilatedCNN(5, 8, 1, 5), Settings(Alphabet.of("dna"), LENGTH, 0, False))
    settings: dict[str, Any] = {
        "rounds": 2,
        "model": {"kind": "masked", "path": "model"},
        "prompts": ["", f"fixed=3:{MOTIF}"],
        "reward": [
            {"kind": "gc_content"},
            {"kind": "gc_content", "name": "middle", "args": {"target": 0.5}, "weight": 0.0},
        ],
        "search": {"candidates": 3, "alpha": 0.02, "gradient": True, "steps": STEPS, "trajectories": 12, "chunk": 4},
        "mstep": {"candidates": "all", "learning_rate": 0.01, "kl": 0.01, "batch_size": 16},
        "evaluate": {
            "samples": 16,
            "batch": 8,
            "kl_samples": 8,
            "heldout": [{"kind": "own_window:Window", "name": "window"}],
        },
        "roles": {
            "search": {"replicas": 1, "cpus": 0.2},
            "reward": {"replicas": 1, "cpus": 0.1},
            "train": {"replicas": 1, "cpus": 0.2},
        },
    }
    (place / "tiny.yaml").write_text(yaml.safe_dump(settings))
    (place / "own_window.py").write_text(OWN)
    (place / "elsewhere").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_NODE_TYPE_NAME", "small")  # as the autoscaler and KubeRay say which group a node is of
        output = finish(start(place / "elsewhere", "../tiny.yaml", "--run-dir", "../run"), 0)
    assert "report.html" in output
    return place


def test_config_yaml_says_where_everything_is(folder: Path) -> None:
    stored = yaml.safe_load((folder / "run/config.yaml").read_text())
    assert stored["model"]["path"] == str(folder / "model") and stored["model"]["alphabet"] == "dna"
    assert stored["modules"] == [str(folder)]


def test_the_reward_rises(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    fresh = [line for line in lines if line["role"] == "evaluate"]
    assert fresh[-1]["evaluate/reward_mean"] > fresh[0]["evaluate/reward_mean"] + 0.05
    assert {"diversity/edit_distance", "diversity/unique", "heldout/elbo", "heldout/kl", "median/window"} <= set(
        fresh[0]
    )
    assert fresh[0]["heldout/kl"] == 0 < fresh[-1]["heldout/kl"]
    found = [line for line in lines if line["role"] == "search"]
    assert found[0]["reward/mean"] > fresh[0]["evaluate/reward_mean"]
    assert found[0]["reward/gc_content"] == pytest.approx(found[0]["reward/mean"])
    assert fresh[0]["evaluate/reward_mean/gc_content"] == pytest.approx(fresh[0]["evaluate/reward_mean"])
    assert found[0]["reward/middle"] < 0 > fresh[0]["evaluate/reward_mean/middle"]
    assert found[0]["search/nfe_per_sample"] <= 5 + 4 * 3


def test_the_searchs_speed_is_that_of_its_work(folder: Path) -> None:
    """One worker, which computes while it does not wait; what a network evaluation takes is counted by hand."""
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    chunks = [event for event in events(folder / "run") if event["event"] == "chunk_committed"]
    for line in (line for line in lines if line["role"] == "search"):
        seconds = [event["seconds"] for event in chunks if event["round"] == line["round"]]
        waited, decoded = line["search/reward_wait_share"], line["search/decode_share"]
        assert 0 < waited < 1 and 0 < decoded < 1 - waited
        assert line["chunk_s/CPU"] == pytest.approx(median(seconds), abs=1e-3)
        assert line["group_chunk_s/small"] == line["chunk_s/CPU"]
        computed_s = sum(seconds) * (1 - waited)
        assert line["util/search"] <= computed_s / line["time/estep_s"] + 0.2
        flops = EVALUATION * 12 * (line["search/nfe_per_sample"] + STEPS)  # every parent with backward
        assert line["search/tflops"] == pytest.approx(flops / 1e12 / computed_s, rel=0.02)
        assert not [name for name in line if name.startswith("peak_share/")]  # of CPUs nothing is known


def test_the_buffer_holds_sequences_that_kept_their_fixed_letters(folder: Path) -> None:
    tables = [pq.read_table(file) for file in sorted((folder / "run/buffer").rglob("*.parquet"))]
    names = ["condition", "sequence", "reward", "reward/gc_content", "reward/middle"]
    rows = [row for table in tables for row in table.select(names).to_pylist()]

    assert len(rows) == 24
    for row in rows:
        assert len(row["sequence"]) == LENGTH and set(row["sequence"]) <= set("ACGT")
        assert row["reward"] == pytest.approx(sum(letter in "GC" for letter in row["sequence"]) / LENGTH)
        assert row["reward/gc_content"] == row["reward"]
        assert row["reward/middle"] == pytest.approx(-abs(row["reward"] - 0.5))
        assert not row["condition"] or row["sequence"][3:7] == MOTIF


def test_the_policy_loads_where_users_live(folder: Path) -> None:
    """`dav_ray.load`, and the folder by itself, adapters merged: the same model, whose samples are the run's own."""
    whole = dav_ray.load(str(folder / "run"))
    alone = MaskedDiffusion.from_checkpoint(folder / "run/policy/v0002", steps=5)
    texts = whole.sample(16, seed=1_000_000, conditions=["", f"fixed=3:{MOTIF}"])
    measured = pq.read_table(folder / "run/evaluate/round-0002.parquet", columns=["sequence"]).column(0).to_pylist()

    assert texts == alone.sample(16, seed=1_000_000, conditions=["", f"fixed=3:{MOTIF}"])
    assert sum(a == b for a, b in zip(texts, measured, strict=True)) >= 15  # merging rounds in the last digit
    assert dav_ray.load(str(folder / "run"), version=0).sample(4) != whole.sample(4)


def test_the_report_shows_logos_and_designs(folder: Path) -> None:
    page = (folder / "run/report.html").read_text()
    assert "Logos of the fresh samples" in page
    best = max(
        pq.read_table(file, columns=["sequence", "reward"]).to_pandas().nlargest(1, "reward")["sequence"].iloc[0]
        for file in (folder / "run/evaluate").glob("*.parquet")
    )
    assert len(best) == LENGTH and page.count("<pre") + page.count("<code") + page.count("<td") > 20


MEASURES = ("evaluate.samples=5", "evaluate.grid=3", "evaluate.heldout=[{kind: gc_window}]")


@dataclass(frozen=True)
class Stored:
    """A run in an object store, and a copy of all that is there."""

    place: str
    copy: Path

    @property
    def storage(self) -> Storage:
        return open_storage(self.place)

    def fetch(self) -> None:
        """Make the copy: as a run on a disk would look, where files of lines are one file each."""
        content = {path: self.storage.read(path) for path in self.storage.list("") if ".jsonl" not in path}
        for name in ("events.jsonl", "metrics.jsonl"):
            content[name] = "".join(f"{line}\n" for line in self.storage.read_lines(name)).encode()
        for path, data in content.items():
            (self.copy / path).parent.mkdir(parents=True, exist_ok=True)
            (self.copy / path).write_bytes(data)

    def manifest(self) -> dict[str, Any]:
        return json.loads(self.storage.read(MANIFEST)) if self.storage.exists(MANIFEST) else {"shards": []}


@pytest.fixture(scope="module")
def part(folder: Path, s3: str) -> Stored:
    """A run of 1 round whose search workers and then whose driver are killed. It goes on to 2 rounds under other sizes
    of the evaluation; there its rank is killed. It has one search worker more than the undisturbed run."""
    found = Stored(f"{s3}/part", folder / "part")
    words = ("tiny.yaml", "roles.search.replicas=2", "track.kinds=[tensorboard]", "--run-dir", found.place)
    process = start(folder, *words, "rounds=1")
    until(lambda: found.manifest()["shards"], "no chunk", 400, process=process)
    kill(process, "SearchActor")
    until(lambda: len(found.manifest()["shards"]) > 1, "no other chunk", 400, process=process)
    process.kill()
    process.communicate(timeout=hung(60))
    assert (found.manifest()["closed"], found.manifest()["phase"]) in ((0, "search"), (0, "fit"))
    process = start(folder, *words, "rounds=2", *MEASURES)
    kill(process, "RayTrainWorker")
    assert "round 2, aligned" in finish(process, 0)
    found.fetch()
    return found


def kill(driver: subprocess.Popen[str], title: str) -> None:
    """The actors of this class, once there are some."""
    until(lambda: actors(title), f"no {title}", 400, process=driver, pause_s=0.1)
    for process in actors(title):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.mark.thorough
def test_a_run_that_is_killed_and_one_that_goes_on_end_in_the_same_bits(folder: Path, part: Stored) -> None:
    """In an object store as on a disk; as a run that was asked for 2 rounds from the start."""
    copy, run = part.copy, folder / "run"
    assert shards(copy) == shards(run) and len(shards(copy)) == 6
    assert files(copy, "policy/v0002/*.safetensors") == files(run, "policy/v0002/*.safetensors") != {}
    manifest = part.manifest()
    assert (manifest["phase"], manifest["closed"], manifest["policy_version"]) == ("done", 2, 2)
    assert [event["epoch"] for event in events(copy) if event["event"] == "driver_started"] == [1, 2]
    committed = [(e["round"], e["chunk"]) for e in events(copy) if e["event"] == "chunk_committed"]
    # what was accepted before is kept; the driver may have died between a chunk and its event
    assert len(set(committed)) == len(committed) >= 5


@pytest.mark.thorough
def test_what_changed_on_the_way_is_told(folder: Path, part: Stored) -> None:
    copy = part.copy
    changed = next(event for event in events(copy) if event["event"] == "settings_changed")
    assert changed["changes"]["rounds"] == "was 1, now 2"
    page = (copy / "report.html").read_text()
    assert "different numbers of samples: 16 in round 0, 5 in rounds 1 to 2." in page
    # one page at least is written while rounds go on, before the last one of the command
    names = [event["event"] for event in events(copy)]
    assert "report_written" in names[names.index("settings_changed") :]

    answer = finish(start(folder, "tiny.yaml", "rounds=1", "--run-dir", part.place), 0)
    assert "finished (2 rounds); rounds = 1 discards none" in answer
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    rows = {line["round"]: line for line in lines if line["role"] == "evaluate"}
    rise = (rows[2]["evaluate/reward_mean"] - rows[0]["evaluate/reward_mean"]) / rows[0]["evaluate/reward_std"]
    assert rows[0]["evaluate/rise_sd"] == 0 and rows[2]["evaluate/rise_sd"] == rise


@pytest.mark.slow  # one more run; tests/runtime/test_initial_policy.py has what it copies and says
def test_a_new_run_starts_from_its_policy_and_is_measured_again(folder: Path, part: Stored) -> None:
    """Round 0 is that policy, KL is to the pretrained model; `evaluate` measures both policies on the same seeds."""
    words = ["init={run: part, version: last}", "rounds=1", "evaluate.kl_samples=4", "--run-dir", "new"]
    finish(start(folder, "tiny.yaml", *words), 0)
    new = folder / "new"
    copied, origin = (
        files(folder / run, f"policy/{v}/*.safetensors") for run, v in (("new", "v0000"), ("part", "v0002"))
    )
    assert {path.rpartition("/")[2]: data for path, data in copied.items()} == {
        path.rpartition("/")[2]: data for path, data in origin.items() if "optimizer" not in path
    }
    assert json.loads((new / "policy/v0000/origin.json").read_text()) == {"run": str(part.copy), "version": 2}
    started = next(event for event in events(new) if event["event"] == "initialised")
    assert (started["run"], started["version"]) == (str(part.copy), 2)
    first, before = (
        pq.read_table(folder / run) for run in ("new/evaluate/round-0000.parquet", "part/evaluate/round-0002.parquet")
    )
    assert first.column("sequence").to_pylist()[:5] == before.column("sequence").to_pylist()
    assert all(kl > 0 for kl in first.column("kl").drop_null().to_pylist()) and first.column("kl").null_count == 12
    assert "initial policy" in (new / "report.html").read_text()

    command = [sys.executable, "-m", "dav_ray", "evaluate", "new", "--samples", "12", "--version", "best"]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=hung(300))
    (written,) = (new / "evaluate").glob("again-*.json")
    record = json.loads(written.read_text())
    table = pq.read_table(written.with_suffix(".parquet"))
    assert (record["version"], record["samples"], record["seed"]) == (1, 12, 1_000_000) and table.num_rows == 12
    assert record["round_0_measured_again"] and record["metrics"]["evaluate/reward_mean"] == pytest.approx(
        sum(table.column("reward").to_pylist()) / 12
    )
    assert (
        table.column("sequence").to_pylist()[:4]
        == (pq.read_table(new / "evaluate/round-0001.parquet").column("sequence").to_pylist()[:4])
    )
    assert "initial policy" in done.stdout and str(written) in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if not line.startswith("written"))


@pytest.mark.slow
def test_rounds_go_on_from_the_last_one_whoever_searches(folder: Path) -> None:
    """Two rounds of refine: rewards rise, the second costs less. Taken back to the end of the first, with another
    number of workers, the run ends in the same shards."""
    words = ["search.kind=refine", "search.repeats=2", "search.depth=0.4", "search.gradient=false", "search.alpha=1e-6"]
    words += ["mstep.candidates=winner", "evaluate.samples=4", "evaluate.kl_samples=0", "--run-dir", "refined"]
    run = folder / "refined"
    finish(start(folder, "tiny.yaml", "roles.search.replicas=2", *words), 0)
    undisturbed = shards(run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {line["round"]: line for line in lines if line["role"] == "search"}
    assert found[2]["search/nfe_per_sample"] <= 2 * (1 + 3) < found[1]["search/nfe_per_sample"]
    before, after = (_rewards(run, round) for round in (1, 2))
    assert before.keys() == after.keys() == set(range(12))
    assert all(after[n] >= before[n] for n in before) and sum(after.values()) > sum(before.values())

    last = ManifestStore(open_storage(str(run))).load()
    assert last is not None
    back = replace(last, round=2, phase="search", shards=(), closed=1, policy_version=1)
    (run / MANIFEST).write_bytes(back.to_json())
    (run / round_manifest_path(2)).unlink()
    shutil.rmtree(run / "buffer/round=0002")
    finish(start(folder, "tiny.yaml", "roles.search.replicas=1", *words), 0)
    assert shards(run) == undisturbed and len(undisturbed) == 2 * 3


@pytest.mark.slow
def test_a_lost_shard_that_comes_back_with_other_bits_takes_its_place(folder: Path) -> None:
    """As on another kind of GPU: weights that differ in the last digits stand in for it. The run goes on from where it
    was taken back to, rows of the round stay whole, and the round before is not trained again."""
    run, weights = folder / "replaced", folder / "model/model.safetensors"
    shutil.copytree(folder / "run", run)
    store = ManifestStore(open_storage(str(run)))
    ended = store.load()
    assert ended is not None
    named = tuple(Shard.from_fields(shard) for shard in store.round_manifest(2)["shards"])
    back = replace(ended, round=2, phase="fit", shards=named, closed=1, policy_version=1)
    (run / MANIFEST).write_bytes(back.to_json())
    (run / round_manifest_path(2)).unlink()
    (run / named[1].path).unlink()
    first, whole = files(run, "policy/v0001/*"), weights.read_bytes()
    told, fitted = len(events(run)), len((run / "metrics.jsonl").read_text().splitlines())
    try:
        tensors = load_file(weights)
        save_file({name: value * (1 + 1e-3) for name, value in tensors.items()}, weights)
        finish(start(folder, "tiny.yaml", "--run-dir", "replaced"), 0)
    finally:
        weights.write_bytes(whole)
    lost, replaced = (
        [event for event in events(run)[told:] if event["event"] == name] for name in ("shard_lost", "shard_replaced")
    )
    assert [(event["chunk"], event["lost"]) for event in replaced] == [(1, named[1].sha256)] and len(lost) == 1
    now = [Shard.from_fields(shard) for shard in store.round_manifest(2)["shards"]]
    assert (now[0], now[2]) == (named[0], named[2]) and now[1].sha256 == replaced[0]["sha256"] != named[1].sha256
    rows = [n for s in now for n in pq.read_table(run / s.path, columns=["trajectory"]).column(0).to_pylist()]
    assert sorted(rows) == list(range(12)) and shards(run)[now[1].path] == now[1].sha256
    assert files(run, "policy/v0001/*") == first
    again = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()[fitted:]]
    assert [line["round"] for line in again if line["role"] == "mstep"] == [2]


def _rewards(run: Path, round: int) -> dict[int, float]:
    """By trajectory."""
    files = (run / f"buffer/round={round:04d}").iterdir()
    tables = [pq.read_table(file, columns=["trajectory", "reward"]) for file in files]
    return {row["trajectory"]: row["reward"] for table in tables for row in table.to_pylist()}
