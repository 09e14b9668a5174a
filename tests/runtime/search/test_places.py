"""Samples as files: where they may go, and what is read back from there."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dav_ray.config.schema import Config
from dav_ray.config.sections.evaluation import Evaluate
from dav_ray.diffusion.masked.alphabet import Alphabet, read_sequences
from dav_ray.errors import UserError
from dav_ray.evaluation.images import Images
from dav_ray.evaluation.kinds import sample_kind
from dav_ray.evaluation.sequences import Sequences

TEXTS = ["ACGT", "TTTT", "ACGA"]
DNA = Alphabet.of("dna")
KIND = Sequences(DNA, Evaluate())


def table() -> pa.Table:
    return pa.table(
        {
            "sample": pa.array([0, 1, 2]),
            "seed": pa.array([5, 6, 7]),
            "condition": pa.array(["", "2", ""]),
            "reward": pa.array([0.123456789, -math.inf, 3.0]),
            "kl": pa.array([None] * 3, pa.float64()),
            "sequence": pa.array(TEXTS),
            "elbo": pa.array([-1.0, -2.0, -3.0]),
            "heldout/gc": pa.array([0.5, 0.0, 0.5]),
        }
    )


def test_the_models_kind_decides() -> None:
    common = {"prompts": [""], "reward": {"kind": "brightness"}}
    assert isinstance(sample_kind(Config(**common, model={"path": "a/b"})), Images)
    assert isinstance(sample_kind(Config(**common, model={"path": "x", "kind": "masked"})), Sequences)


@pytest.mark.parametrize("name", ["x.fasta", "new/x.fa", "X.FASTA"])
def test_fasta_names_number_and_reward(tmp_path: Path, name: str) -> None:
    said = KIND.write(table(), KIND.place(str(tmp_path / name)))

    assert said == f"3 samples in {tmp_path / name}"
    text = (tmp_path / name).read_text()
    assert text == ">0 reward=0.123457\nACGT\n>1 reward=-inf\nTTTT\n>2 reward=3\nACGA\n"
    assert np.array_equal(read_sequences(tmp_path / name, DNA), [DNA.encode(text) for text in TEXTS])


def test_csv_has_a_column_per_measure(tmp_path: Path) -> None:
    KIND.write(table(), KIND.place(str(tmp_path / "x.csv")))
    rows = list(csv.DictReader((tmp_path / "x.csv").read_text().splitlines()))

    assert list(rows[0]) == ["sample", "seed", "condition", "sequence", "reward", "elbo", "heldout/gc"]
    assert list(rows[0].values()) == ["0", "5", "", "ACGT", "0.123456789", "-1.0", "0.5"]
    assert (rows[1]["condition"], float(rows[1]["reward"])) == ("2", -math.inf)


def test_a_folder_gets_both(tmp_path: Path) -> None:
    said = KIND.write(table(), KIND.place(str(tmp_path / "a/b")))

    assert said == f"3 samples: samples.fasta and samples.csv in {tmp_path / 'a/b'}"
    for name in ("samples.fasta", "samples.csv"):
        assert DNA.decode(read_sequences(tmp_path / "a/b" / name, DNA)) == TEXTS


@pytest.mark.parametrize("name", ["x.fasta", "x.fa", "x.csv"])
def test_images_are_no_text(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"--out .*{name}: .* allowed: a folder"):
        Images("auto").place(str(tmp_path / name))
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("kind", [KIND, Images("auto")])
def test_a_file_in_the_way_is_named(tmp_path: Path, kind: Sequences | Images) -> None:
    (tmp_path / "file").write_text("kept")
    for out in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(UserError, match="--out .*file.* can't be made a folder"):
            kind.place(str(out))
    assert (tmp_path / "file").read_text() == "kept"
