"""`dav-ray pretrain`: what is refused before anything starts, and whole trainings on Ray."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from dav_ray.cli import app
from dav_ray.errors import UserError
from dav_ray.runtime.pretrain import job
from dav_ray.runtime.pretrain.options import Options, prepare
from tests.support.deadlines import hung, until
from tests.support.places import ROOT

SMALL = "--hidden 8 --stacks 1 --kernel 3 --batch 16 --learning-rate 5e-3 --warmup 3 --ema 0.9 --cpus-per-worker 0.5"


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """100 sequences of 8 letters, the first of which is the class."""
    tokens = np.random.default_rng(0).integers(0, 4, (100, 8))
    lines = [f"{''.join('ACGT'[t] for t in row)},{row[0]}" for row in tokens]
    file = tmp_path / "data.csv"
    file.write_text("\n".join(["sequence,kind", *lines]) + "\n")
    return file


def refused(words: list[str]) -> list[str]:
    """The lines on standard error of a command that ends with exit code 2."""
    result = CliRunner().invoke(app.app, ["pretrain", *words])
    assert (result.exit_code, result.stdout) == (2, "")
    return result.stderr.splitlines()


def asked(words: list[str]) -> Options:
    """What the command makes of its arguments."""
    found: list[Options] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "train", found.append)
        assert CliRunner().invoke(app.app, ["pretrain", *words]).exit_code == 0
    return found[0]


MISTAKES = {
    "--hidden 7": "--hidden 7: allowed: an even number, 2 or more",
    "--stacks 0": "--stacks 0: allowed: 1 or more",
    "--kernel 4": "--kernel 4: allowed: an odd number, 1 or more",
    "--steps 0": "--steps 0: allowed: 1 or more",
    "--batch 0": "--batch 0: allowed: 1 or more",
    "--batch 96": "--batch 96: there are 95 sequences to train on; allowed: 1 to 95",
    "--batch 15 --workers 2": "--batch 15: can't be shared out over 2 workers; allowed: a multiple",
    "--learning-rate nan": "--learning-rate nan: allowed: above 0, at most 1",
    "--warmup -1": "--warmup -1: allowed: 0 or more",
    "--ema 1": "--ema 1.0: allowed: 0 or more, below 1",
    "--holdout 0": "--holdout 0.0: allowed: above 0, below 1",
    "--every 0": "--every 0: allowed: 1 or more",
    "--seed -1": "--seed -1: allowed: 0 to 2^32 - 1",
    "--cpus-per-worker 0": "--cpus-per-worker 0.0: allowed: above 0",
    "--gpus-per-worker -1": "--gpus-per-worker -1.0: allowed: 0 or more",
    "--threads 0": "--threads 0: allowed: 1 or more",
    "--alphabet A": "--alphabet A: allowed: dna, rna, protein, or 2 to 254 different letters",
    "--alphabet rna": "data.csv:2: letter 1: 'T'; allowed: ACGU",
    "--column absent": "data.csv: has no column absent; allowed: one of sequence, kind",
    "--class-column absent": "data.csv: has no column absent; allowed: one of sequence, kind",
    "--class-column sequence": "data.csv:2: sequence is 'TGGCCAAA'; allowed: a class number, from 0",
    "--address nowhere": "--address nowhere: is no address; allowed: auto, local or HOST:PORT",
    "--out s3://bucket/model": "--out s3://bucket/model: allowed: a folder on a disk that all nodes share",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_are_refused(data: Path, tmp_path: Path, words: str) -> None:
    lines = refused([str(data), "--out", str(tmp_path / "out"), "--batch", "16", *words.split()])

    assert lines[0].startswith("dav-ray: ") and MISTAKES[words] in lines[0]
    assert len(lines) == 1 or "data.csv:" in lines[1]  # of letters in a file, more than one line is told
    assert not (tmp_path / "out").exists()


FILES = {
    "letters.csv": ("sequence\nACGT\nACNT\n", ":3: letter 3: 'N'; allowed: ACGT"),
    "lengths.csv": ("sequence\nACGT\nACG\n", ":3: 3 letters, the first sequence (line 2) has 4; allowed: one length"),
    "empty.csv": ("", ": has no column sequence"),
    "none.fasta": ("", ": holds no sequences"),
    "one.fasta": (">a\nACGT\n", ": holds 1 sequences, none left to train on; allowed: more, or a smaller --holdout"),
    "few.fasta": (">a\nACGT\n" * 3, "--batch 512: there are 2 sequences to train on; allowed: 1 to 2"),
    "kind.txt": ("ACGT\n", ": unknown kind"),
}


@pytest.mark.parametrize("name", FILES)
def test_data_that_is_refused(tmp_path: Path, name: str) -> None:
    text, expected = FILES[name]
    (tmp_path / name).write_text(text)

    lines = refused([str(tmp_path / name), "--out", str(tmp_path / "out")])
    assert len(lines) == 1 and expected in lines[0]


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    lines = refused(["absent.csv", "--out", str(tmp_path / "file"), "--steps", "0", "--kernel", "2"])

    assert [line.split(": ")[1] for line in lines] == [
        "--kernel 2",
        "--steps 0",
        f"--out {tmp_path}/file",
        "absent.csv",
    ]


def test_class_numbers_have_no_gaps(tmp_path: Path) -> None:
    table = pa.table({"sequence": ["ACGT"] * 4, "kind": [0, 2, 0, 2], "name": list("abcd")})
    pq.write_table(table, tmp_path / "a.parquet")
    words = [str(tmp_path / "a.parquet"), "--out", str(tmp_path / "out"), "--batch", "1", "--class-column"]

    assert "kind is 1 in no row; allowed: class numbers from 0 without a gap" in refused([*words, "kind"])[0]
    assert len(refused([*words, "name"])) == 4
    (tmp_path / "a.fasta").write_text(">a\nACGT\n")
    assert "a FASTA file has no columns" in refused([str(tmp_path / "a.fasta"), *words[1:], "kind"])[0]


def test_a_folder_of_other_settings_or_another_model_is_refused(data: Path, tmp_path: Path) -> None:
    words = [str(data), "--out", str(tmp_path / "out"), "--batch", "16"]
    _, settings = prepare(asked([*words, "--class-column", "kind"]))
    assert settings["classes"] == 4 and settings["length"] == 8 and settings["alphabet"] == "ACGT"

    (tmp_path / "out").mkdir()
    (tmp_path / "out/run.json").write_text(json.dumps(settings))
    lines = refused([*words, "--seed", "1", "--class-column", "kind"])
    assert len(lines) == 1 and "run.json: seed is 0, not 1; allowed: the same, or another --out" in lines[0]
    assert [line.split(": ")[2].split()[0] for line in refused(words)] == ["classes", "data"]

    (tmp_path / "out/run.json").rename(tmp_path / "out/model.safetensors")
    assert "holds a model of another making; allowed: a new folder" in refused(words)[0]


def test_an_embedded_ray_must_have_room(capsys: pytest.CaptureFixture[str]) -> None:
    options = asked("data.csv --out out --workers 3 --cpus-per-worker 2 --gpus-per-worker 1".split())
    nodes = [{"CPU": 16.0, "GPU": 1.0}, {"CPU": 3.0, "GPU": 8.0}, {"CPU": 64.0}]

    with pytest.raises(UserError, match="--workers 3: there is room for 2 of 2 CPU and 1 GPU each"):
        job.check_room(options, nodes)
    options = dataclasses.replace(options, address="auto")
    job.check_room(options, nodes)
    assert "waiting for more nodes" in capsys.readouterr().out
    job.check_room(options, [*nodes, {"CPU": 2.0, "GPU": 1.0}])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "line"), [("--steps many", "Invalid value for '--steps'"), ("--unknown", "--unknown")]
)
def test_words_that_are_no_options(words: str, line: str) -> None:
    assert line in refused(["data.csv", "--out", "out", *words.split()])[-1]


def test_mistakes_are_found_without_torch_and_ray(data: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from dav_ray.cli.app import app\n"
        "try: app(sys.argv[1:])\nexcept SystemExit as done: assert done.code == 2\n"
        "assert not {'torch', 'ray', 'pyarrow'} & set(sys.modules)"
    )
    words = ["pretrain", str(data), "--out", str(tmp_path / "out"), "--batch", "16", "--steps", "0"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, *words], env=env, check=True, timeout=hung(60))


def test_the_script_of_a_clone_is_the_same_command(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "jobs/pretrain_masked.py"), "absent.csv", "--out", "out", "--kernel", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=hung(60))
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == ["--kernel 2", "absent.csv"]


# -- whole trainings on an embedded Ray --------------------------------------------------------------------------------


def command(data: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "dav_ray", "pretrain", str(data), "--out", str(out), *SMALL.split(), *more]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(ROOT),
    }


def run(data: Path, out: Path, *more: str) -> list[str]:
    done = subprocess.run(
        command(data, out, *more), env=environment(), capture_output=True, text=True, timeout=hung(240)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_two_workers_train_a_model_and_a_finished_training_is_left_alone(data: Path, tmp_path: Path) -> None:
    from dav_ray.diffusion.masked.model import MaskedDiffusion

    out = tmp_path / "out"
    words = ("--workers", "2", "--class-column", "kind", "--steps", "8", "--every", "4", "--half")
    lines = run(data, out, *words)
    assert [line.split(":")[0] for line in lines[1:]] == [
        *("starting Ray Train", "step 4", "step 8", str(out), "step 8")
    ]

    diffusion = MaskedDiffusion.from_checkpoint(out)
    assert (diffusion.classes, diffusion.length, diffusion.timeless) == (4, 8, True)
    texts = diffusion.sample(3, conditions=("class=1",))
    assert len(texts) == 3 and all(set(text) <= set("ACGT") and len(text) == 8 for text in texts)
    report = json.loads((out / "report.json").read_text())
    assert report["workers"] == 2 and 1 < report["held_out_bits_per_token"] < 2.5

    before = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()}
    again = run(data, out, *words)
    assert again == [f"{out}: this training is finished", lines[-1]]
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()} == before


@pytest.mark.slow
def test_an_interrupted_training_goes_on_to_the_same_weights(data: Path, tmp_path: Path) -> None:
    """SIGTERM in the middle, then the same command."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    words = ("--every", "100", "--steps")
    run(data, whole, *words, "2000")

    started = subprocess.Popen(
        command(data, parts, *words, "2000"), env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    written = parts / "checkpoint/state.safetensors"
    until(written.exists, "no checkpoint", 120, process=started, pause_s=0.05)
    started.send_signal(signal.SIGTERM)
    started.communicate(timeout=hung(60))
    assert started.returncode == 143 and not (parts / "report.json").exists()

    resumed = run(data, parts, *words, "2000")
    assert "step 100:" not in "".join(resumed)
    for name in ("model.safetensors", "checkpoint/state.safetensors", "report.json"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), name
