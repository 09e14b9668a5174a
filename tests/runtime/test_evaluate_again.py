"""`dav-ray evaluate`: beside round 0 on the same seeds where they are stored, written into the run, a tidy table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dav_ray.config.recipe.load import load
from dav_ray.config.which_policy import wanted_version
from dav_ray.errors import UserError
from dav_ray.evaluation import measure
from dav_ray.evaluation.kinds import sample_kind
from dav_ray.run_dir import shards
from dav_ray.runtime import evaluate_again, inference
from dav_ray.runtime.evaluate_again import compare, evaluate_run, render, stored_first
from tests.support.runs import masked_recipe
from tests.whole.test_going_on import begun

REWARDS = [0.1, 0.3, 0.2, 0.4, 0.9, 0.7]


def table(rewards: list[float], **columns: Any) -> pa.Table:
    """An evaluation of sequences on measure.seed's seeds."""
    count = len(rewards)
    rows = {
        "sample": pa.array(range(count)),
        "seed": pa.array([1_000_000 + n for n in range(count)]),
        "condition": pa.array([""] * count),
        "reward": pa.array(rewards),
        "kl": pa.array([None] * count, pa.float64()),
        "sequence": pa.array(["ACGT", "TTTT", "GGGG"][n % 3] for n in range(count)),
    }
    return pa.table({**rows, **columns})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of three rounds, the first of which is stored on six samples."""
    from dav_ray.run_dir.storage.uri import open_storage

    made = load(str(masked_recipe(tmp_path)))
    storage = open_storage(str(tmp_path / "run"))
    begun(storage, made)
    storage.write(measure.table_path(0), shards.encode(table(REWARDS))[0])
    return tmp_path / "run"


def chunks(run: Path, num: int) -> list[Any]:
    config = inference.stored_run(str(run)).config
    return measure.evaluation_chunks(config, 3, 3, config.prompts, num)


def test_round_zero_is_read_where_it_has_the_same_samples(run: Path) -> None:
    stored, columns = inference.stored_run(str(run)), table(REWARDS).column_names
    first = stored_first(stored, chunks(run, 4), columns)
    assert first is not None and first.column("reward").to_pylist() == REWARDS[:4]
    assert stored_first(stored, chunks(run, 7), columns) is None  # more than were drawn
    assert stored_first(stored, chunks(run, 4), [*columns, "heldout/x"]) is None  # a measure of later
    stored.storage.write(measure.table_path(0), shards.encode(table(REWARDS, seed=pa.array(range(6))))[0])
    assert stored_first(stored, chunks(run, 4), columns) is None
    stored.storage.delete(measure.table_path(0))
    assert stored_first(stored, chunks(run, 4), columns) is None


def test_the_version_that_is_meant(run: Path) -> None:
    stored = inference.stored_run(str(run))
    assert [wanted_version(stored, text) for text in ("last", "best", "0", "2")] == [3, 3, 0, 2]
    with pytest.raises(UserError, match="--version 4: .*/run has no such policy; allowed: best, last, 1, 2, 3"):
        wanted_version(stored, "4")
    for text in ("first", "-1", "1.5", ""):
        with pytest.raises(UserError, match="is no version; allowed: best, last or a whole number >= 0"):
            wanted_version(stored, text)


def test_what_is_written_and_printed(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The cluster aside: the table, the files and the numbers in them."""
    import contextlib

    again = table([r + 0.5 for r in REWARDS[:4]], kl=pa.array([2.0, 4.0, None, None]))
    monkeypatch.setattr(evaluate_again, "measuring", lambda *_: contextlib.nullcontext(lambda chunks: again))
    monkeypatch.setenv("COLUMNS", "80")
    evaluate_run(str(run), 4, "last", "local")

    (file,) = (run / "evaluate").glob("again-*-v0003.json")
    record = json.loads(file.read_text())
    assert (record["version"], record["samples"], record["seed"]) == (3, 4, 1_000_000)
    assert not record["round_0_measured_again"] and record["round_0"]["evaluate/reward_mean"] == pytest.approx(0.25)
    assert record["metrics"]["evaluate/reward_mean"] == pytest.approx(0.75)
    spread = record["round_0"]["evaluate/reward_std"]
    assert record["metrics"]["evaluate/rise_sd"] == pytest.approx(0.5 / spread)
    assert shards.decode(file.with_suffix(".parquet").read_bytes()) == again

    output = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in output.splitlines() if line[0] == "│"]
    assert ["reward", "0.25", "0.75", "+0.5", f"{0.5 / spread:+.2f}"] in rows
    assert ["KL to pretrained, nats", "0", "3", "+3", ""] in rows
    assert str(file) in output and all(len(line) <= 80 for line in output.splitlines() if line[0] in "│┃┏└")


def test_a_name_that_is_long_is_folded(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    name = "heldout/" + "a_measure_of_a_very_long_name" * 4
    rows = table(REWARDS, **{name: pa.array(REWARDS)})
    kind = sample_kind(inference.stored_run(str(run)).config)
    metrics = measure.summarise(rows, kind)
    text = render(compare(3, rows, rows, metrics, metrics), 6, "pretrained")
    assert max(map(len, text.splitlines())) <= 80
    assert "+0.00" in text
