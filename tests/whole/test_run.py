"""Whole runs through the command line, on an embedded Ray: what a user sees, and what is left in the run directory."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import time
import warnings
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from dav_ray.cli.app import app
from tests.support.deadlines import stretched, until
from tests.support.runs import events, finish, recipe, shards, start, wait_for, weights
from tests.support.tiny import save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("run")
    save_tiny(place)
    return place


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """An undisturbed run."""
    output = finish(start(folder, str(recipe(folder)), "--run-dir", "whole"), 0)
    assert "report.html" in output and "round" in output
    assert "Unhandled error" not in output  # of a chunk that another worker did, too
    return folder / "whole"


def test_the_run_directory_holds_what_the_contract_names(whole: Path) -> None:
    manifest = json.loads((whole / "manifest.json").read_text())
    assert (manifest["phase"], manifest["closed"], manifest["policy_version"]) == ("done", 2, 2)
    assert {"ray", "torch", "diffusers"} <= set(manifest["versions"])
    assert len(shards(whole)) == 6
    assert all(path.endswith(f"-{checksum}.parquet") for path, checksum in shards(whole).items())
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [(line["round"], line["role"]) for line in lines] == [
        (0, "evaluate"),
        *((round, role) for round in (1, 2) for role in ("search", "mstep", "evaluate")),
    ]
    search, mstep = lines[1], lines[2]
    assert search["search/nfe_per_sample"] == 1 + (4 - 1) * 2
    assert {"reward/mean", "reward/std", "search/ess", "search/samples_per_s", "time/estep_s"} <= set(search)
    assert mstep["mstep/rows"] == 7
    assert {"mstep/nll", "mstep/kl", "mstep/grad_norm", "time/mstep_s"} <= set(mstep)


def test_every_trajectory_is_accepted_once(whole: Path) -> None:
    for round in (1, 2):
        tables = [pq.read_table(whole / p) for p in shards(whole) if f"round={round:04d}" in p]
        numbers = [n for table in tables for n in table.column("trajectory").to_pylist()]
        assert sorted(numbers) == list(range(7))
        assert {v for table in tables for v in table.column("policy_version").to_pylist()} == {round - 1}
        assert all(table.column("log_weight").null_count == 0 for table in tables)


def test_the_same_command_again_changes_nothing(folder: Path, whole: Path) -> None:
    def state() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}

    before, clock = state(), time.monotonic()
    output = finish(start(folder, str(recipe(folder)), "--run-dir", "whole"), 0)
    assert "finished" in output and state() == before
    assert time.monotonic() - clock < stretched(15)  # Ray is not even started


def test_another_configuration_is_refused(folder: Path, whole: Path) -> None:
    output = finish(start(folder, str(recipe(folder)), "search.alpha=0.5", "--run-dir", "whole"), 2)
    assert "search.alpha" in output and "0.01" in output and "0.5" in output


def test_the_policy_reproduces_the_runs_samples_in_diffusers(folder: Path, whole: Path) -> None:
    import io

    import numpy as np
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from PIL import Image

    import dav_ray

    pipe: Any = StableDiffusionPipeline.from_pretrained(folder / "pipeline", safety_checker=None)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.load_lora_weights(whole / "policy/v0002", weight_name="pytorch_lora_weights.safetensors")
    rows = pq.read_table(whole / "evaluate/round-0002.parquet").to_pylist()
    for loaded in (pipe, dav_ray.load(str(whole))):
        loaded.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(row["seed"]) for row in rows]
        prompts = [row["condition"] for row in rows]
        drawn = loaded(prompts, num_inference_steps=4, eta=1.0, guidance_scale=2.0, generator=generators).images
        for row, image in zip(rows, drawn, strict=True):
            stored = np.array(Image.open(io.BytesIO(row["image"]))).astype(int)
            assert np.abs(stored - np.array(image)).max() <= 1  # rounding of another batch size


def test_load_warns_of_nothing_and_needs_no_folder(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The recipe named its model by a relative path. tests/diffusion/pipelines/test_loading.py has what imports say."""
    import dav_ray

    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe: Any = dav_ray.load(str(whole))
    assert pipe.get_list_adapters() == {"unet": ["default_0"]}
    said = capfd.readouterr()
    assert "LoRA" not in said.err and "deprecated" not in said.err and said.out == ""


def test_a_process_without_ray_draws_the_bits_of_a_search_worker(whole: Path) -> None:
    from dav_ray.config.stored import read_run
    from dav_ray.evaluation.drawing import draw
    from dav_ray.evaluation.measure import evaluation_chunks

    stored = read_run(str(whole))
    chunks = evaluation_chunks(stored.config, 2, 2, stored.config.prompts)
    table, remarks = draw(stored.storage, stored.config, chunks)
    rows = pq.read_table(whole / "evaluate/round-0002.parquet").to_pylist()

    assert remarks == []
    for name in ("seed", "condition", "image", "reward", "kl"):
        assert table.column(name).to_pylist() == [row[name] for row in rows], name


def test_pretrained_and_aligned_samples_differ(whole: Path) -> None:
    first, last = (pq.read_table(whole / f"evaluate/round-{r:04d}.parquet") for r in (0, 2))
    assert first.column("seed").equals(last.column("seed"))
    assert first.column("kl").drop_null().to_pylist() == [0.0, 0.0]
    assert all(kl > 0 for kl in last.column("kl").drop_null().to_pylist())


@pytest.mark.slow  # two more runs; tests/whole/test_run_masked.py (thorough) kills one of a masked model
def test_sigterm_then_the_same_command_gives_the_undisturbed_result_in_an_object_store(
    folder: Path, whole: Path, s3: str
) -> None:
    from dav_ray.run_dir.storage.uri import open_storage

    storage = open_storage(place := f"{s3}/run")

    def state() -> dict[str, Any]:
        return json.loads(storage.read("manifest.json")) if storage.exists("manifest.json") else {"closed": 0}

    command = (str(recipe(folder)), "roles.search.replicas=1", "--run-dir", place)  # `whole` had two
    process = start(folder, *command)
    until(lambda: state()["closed"] == 1 and state()["shards"], "no round 2", 400, process=process)
    process.send_signal(signal.SIGTERM)
    finish(process, 143)
    assert state()["closed"] == 1 and len(state()["shards"]) >= 1
    finish(start(folder, *command), 0)
    assert {path: storage.read(path) for path in storage.list("buffer")} == {
        path: (whole / path).read_bytes() for path in shards(whole)
    }
    assert storage.read("policy/v0002/pytorch_lora_weights.safetensors") == weights(whole, 2)
    assert storage.exists("report.html") and len(storage.read_lines("metrics.jsonl")) == 7
    told = [json.loads(line) for line in storage.read_lines("events.jsonl")]
    assert [event["epoch"] for event in told if event["event"] == "driver_started"] == [1, 2]


REWARDS = """
import time
from dav_ray.rewards.jpeg import JpegCompressibility

class Slow(JpegCompressibility):
    def __call__(self, samples, conditions):
        time.sleep(0.3)
        return super().__call__(samples, conditions)
"""


@pytest.mark.slow  # by default jobs/chaos.py's short lane kills one
def test_a_killed_search_worker_costs_time_not_results(folder: Path, whole: Path) -> None:
    (folder / "own_rewards.py").write_text(REWARDS)
    process = start(folder, str(recipe(folder)), "reward.kind=own_rewards:Slow", "--run-dir", "killed")
    wait_for(folder / "killed", "chunk_committed", 1, process)
    victims = subprocess.run(["pgrep", "-f", "ray::SearchActor"], capture_output=True, text=True).stdout.split()
    mine = [int(pid) for pid in victims if _descends_from(int(pid), process.pid)]
    os.kill(mine[0], signal.SIGKILL)
    finish(process, 0)
    witnessed = [event["event"] for event in events(folder / "killed")]
    assert "worker_lost" in witnessed and {"requeued", "doubled"} & set(witnessed)
    # the reward is the same function, slower: so are shards and weights
    assert shards(folder / "killed") == shards(whole)
    assert weights(folder / "killed", 2) == weights(whole, 2)


def _descends_from(pid: int, ancestor: int) -> bool:
    """Ray's workers are children of its raylet, which the driver started."""
    while pid > 1:
        if pid == ancestor:
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return False


def test_sample_draws_what_the_evaluation_drew(folder: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(app, ["sample", "whole", "--num", "4", "--out", "pictures"])
    assert done.exit_code == 0, done.output
    rows = pq.read_table(whole / "evaluate/round-0002.parquet").to_pylist()
    with open(folder / "pictures/samples.csv", newline="") as file:
        listed = list(csv.DictReader(file))
    assert [(int(row["seed"]), row["condition"]) for row in listed] == [
        (row["seed"], row["condition"]) for row in rows[:4]
    ]
    assert [float(row["reward"]) for row in listed] == pytest.approx([row["reward"] for row in rows[:4]], abs=0.02)
    assert all((folder / "pictures" / row["file"]).read_bytes().startswith(b"\x89PNG") for row in listed)
