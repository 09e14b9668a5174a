"""`dav-ray sample`: files of the kind that the run draws, and mistakes found before anything is started."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from typer.testing import CliRunner

from dav_ray import buffer, cli, fresh
from dav_ray.manifest import ManifestStore
from dav_ray.sequences import Alphabet, read_sequences
from dav_ray.storage import open_storage

RUN = {
    "diffusers": "model: {path: a/b}\nprompts: ['']\nreward: {kind: brightness}\n",
    "masked": "model: {kind: masked, path: 'shipped:dna'}\nreward: {kind: gc_content}\n"
    "mstep: {lora: {targets: [convs]}}\n",
}


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "PNG")
    return file.getvalue()


def drawn(kind: str) -> pa.Table:
    """What `fresh_samples` returns, without a cluster."""
    common: dict[str, Any] = {
        "sample": pa.array([0, 1]),
        "seed": pa.array([9, 10]),
        "condition": pa.array(["", ""]),
        "reward": pa.array([0.5, 1.5]),
        "kl": pa.array([None, None], pa.float64()),
    }
    if kind == "masked":
        return pa.table({**common, "sequence": pa.array(["ACGT", "TTTT"])})
    features = np.zeros((2, 3), np.float32)
    shown = pa.table({**common, "image": pa.array([png()] * 2, pa.binary())})
    return shown.append_column(buffer.tensor_field("features", features), buffer.tensor_column(features))


@pytest.fixture(params=["diffusers", "masked"])
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A finished run of this kind in ./run."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(RUN[request.param])
    ManifestStore(open_storage(str(tmp_path / "run"))).open("0" * 64, {})
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return request.param


def sample(out: str) -> tuple[int, list[str], str]:
    """Exit code, lines on stderr, stdout."""
    result = CliRunner().invoke(cli.app, ["sample", "run", "--num", "2", "--out", out])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stderr.splitlines(), result.stdout


def test_files(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh, "fresh_samples", lambda stored, num, seed, address: (1, drawn(stored.config.model.kind)))

    assert sample("out")[0] == 0
    found = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert found == (
        ["samples.csv", "samples.fasta"] if kind == "masked" else ["00000.png", "00001.png", "samples.csv"]
    )
    if kind == "masked":
        assert sample("x.fa") == (0, [], "2 samples in x.fa\n")
        assert Alphabet.of("dna").decode(read_sequences("x.fa", Alphabet.of("dna"))) == ["ACGT", "TTTT"]
    else:
        header = (tmp_path / "out/samples.csv").read_text().splitlines()[0]
        assert header == "file,sample,seed,condition,reward"


def test_a_place_that_can_not_be_is_found_first(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: Any) -> None:
        raise AssertionError("actors were started")

    monkeypatch.setattr(fresh, "fresh_samples", started)
    if kind == "diffusers":
        line = "dav-ray: --out x.fasta: this run's samples are images, written one file each; allowed: a folder"
        assert sample("x.fasta") == (2, [line], "")
    (tmp_path / "file").touch()
    code, errors, _ = sample("file")
    assert code == 2 and len(errors) == 1 and errors[0].startswith("dav-ray: --out file: ")
