"""Each of several rewards under its name: in shards, evaluations, metrics, the table, the report, files."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from dav_ray.config.recipe.load import load
from dav_ray.config.sections.evaluation import Evaluate
from dav_ray.diffusion.masked.alphabet import Alphabet
from dav_ray.errors import UserError
from dav_ray.evaluation.measure import measure, one_line, summarise
from dav_ray.evaluation.sequences import Sequences
from dav_ray.report.charts import curves
from dav_ray.report.data import load_run
from dav_ray.report.page import headline
from dav_ray.rewards.base import local_scorer
from dav_ray.rewards.colour import Brightness, TargetColour
from dav_ray.run_dir import shards
from dav_ray.run_dir.manifest import Shard
from dav_ray.run_dir.reward_columns import named, read_each, with_columns
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.runtime.accepted import Accepted, ChunkScores, load_shard, search_metrics
from dav_ray.runtime.search.starts import _shard
from dav_ray.types import Cost
from tests.evaluation import test_measure
from tests.report import test_page
from tests.report.test_table import cells
from tests.run_dir import test_shards

NAMES = ("bright", "dull one")
EACH = torch.tensor([[1.0, -1.0], [2.0, -math.inf], [math.nan, math.nan], [4.0, -4.0]], dtype=torch.float64)


def table(names: tuple[str, ...] = NAMES) -> pa.Table:
    return shards.to_table(test_shards.CHUNK, replace(test_shards.found(), each=EACH), None, names)


def test_a_shard_has_a_column_per_reward_and_one_reward_has_none() -> None:
    data, _ = shards.encode(table())
    back = shards.decode(data)
    assert back.column("reward/bright").to_pylist() == [1.0, 2.0, None, 4.0]
    assert back.column("reward/dull one").to_pylist() == [-1.0, -math.inf, None, -4.0]
    np.testing.assert_array_equal(read_each(back, NAMES), EACH.numpy())
    one = shards.encode(shards.to_table(test_shards.CHUNK, test_shards.found()))
    assert shards.encode(table(("bright",))) == one  # the bytes of a release that had no such columns
    assert back.drop_columns(["reward/bright", "reward/dull one"]) == shards.decode(one[0])


def test_shards_without_the_columns_go_together_with_those_that_have_them(tmp_path: Path) -> None:
    old = table(())
    assert with_columns(old, NAMES).schema == table().schema
    assert with_columns(old, NAMES).column("reward/bright").to_pylist() == [None] * 4
    assert with_columns(old, ("bright",)) == old and with_columns(table(), NAMES) == table()
    for pair in ([old, table()], [table(), old]):
        rows = shards.to_rows(shards.concat(pair), dict.fromkeys((8, 9, 10, 11), 1.0))
        assert torch.equal(rows.states, test_shards.found().states.transpose(0, 1).repeat(2, 1, 1, 1, 1))
    storage = open_storage(str(tmp_path))
    accepted = []
    for index, one in enumerate((old, table())):
        data, sha256 = shards.encode(one)
        shard = Shard(shards.shard_path(2, index, sha256), sha256, index, 4, 1)
        storage.write(shard.path, data)
        found, scores = load_shard(storage.uri, shard, NAMES)
        assert found is not None and found.schema == table().schema and isinstance(scores, ChunkScores)
        accepted.append(Accepted(None, shard, scores))
    metrics = search_metrics(accepted, Cost(), 1.0, 8)
    assert metrics["reward/bright"] == pytest.approx(7 / 3) and metrics["reward/dull one"] == -2.5
    assert "reward/bright" not in search_metrics(accepted[:1], Cost(), 1.0, 4)


def test_a_start_of_an_older_shard_knows_no_single_reward() -> None:
    for names, expected in ((NAMES, EACH.numpy()), ((), np.full((4, 2), np.nan))):
        *_, each = _shard(shards.encode(table(names))[0], NAMES)
        np.testing.assert_array_equal(each, expected)


def test_an_evaluation_tells_them_apart() -> None:
    toy = test_measure.Pictures(steps=3, dim=3)
    rewards = [("bright", 0.5, Brightness()), ("orange", 2.0, TargetColour())]
    found = measure(toy, local_scorer(rewards), test_measure.JUDGES, test_measure.CHUNK)
    assert named(found) == ["bright", "orange"]
    bright, orange = (found.column(f"reward/{name}").to_numpy() for name in named(found))
    np.testing.assert_array_equal(found.column("reward").to_numpy(), 0.5 * bright + 2.0 * orange)
    np.testing.assert_array_equal(orange, found.column("heldout/orange").to_numpy())
    metrics = summarise(found, test_measure.IMAGES)
    assert metrics["evaluate/reward_mean/bright"] == bright.mean()
    assert metrics["evaluate/reward_std/orange"] == orange.std()
    assert f"bright {bright.mean():.4g}, orange {orange.mean():.4g}, " in one_line(1, metrics)
    one = measure(toy, local_scorer(rewards[:1]), test_measure.JUDGES, test_measure.CHUNK)
    assert named(one) == [] and not [n for n in summarise(one, test_measure.IMAGES) if n.count("/") > 1]


def test_the_last_table_has_a_column_for_each(tmp_path: Path) -> None:
    row = {"evaluate/reward_mean": 1.0, "evaluate/reward_mean/a": 0.25, "evaluate/reward_std/a": 1.0}
    row |= {"evaluate/reward_mean/b": 3.0, "heldout/b": 7.0}
    assert cells(tmp_path, {"round": 0, **row}) == [
        ["round", "reward", "rise in sd", "a", "b", "b (held out)", "searched reward"],
        ["0", "1", "", "0.25", "3", "7", ""],
    ]


def test_the_report_shows_each_and_what_one_gains_at_the_cost_of_another(tmp_path: Path) -> None:
    for r in range(3):
        each = {f"evaluate/reward_{kind}/{name}": value for kind, name, value in (
            ("mean", "a", 1.0 + r), ("std", "a", 0.5), ("mean", "b", 2.0 - r), ("std", "b", 0.25),
        )}  # fmt: skip
        lines = [test_page.evaluate_line(r, **each)]
        lines += [{"round": r, "role": "search", "reward/mean": 0.0, "reward/a": 1.5 + r}] if r else []
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "config.yaml").write_text("reward: [{kind: k, name: a}, {kind: k, name: b}]\n")
    run = load_run(open_storage(str(tmp_path)))
    rows = {row.measure: row for row in headline(run)}
    a, b = rows["Reward a"], rows["Reward b"]
    assert (a.pretrained, a.last, a.change) == ("1 ± 0.5", "3 ± 0.5", "+4 sd")
    assert (b.pretrained, b.last, b.change) == ("2 ± 0.25", "0 ± 0.25", "−8 sd")
    charts = {chart.figure["layout"]["title"]["text"]: chart.figure["data"] for chart in curves(run)}
    assert list(charts)[:4] == ["Reward: a + b", "Reward a", "Reward b", "Rewards against each other"]
    assert [trace["y"] for trace in charts["Reward a"][1:]] == [[1, 2, 3], [2.5, 3.5]]
    assert [(t["name"], t["y"]) for t in charts["Rewards against each other"]] == [("a", [0, 2, 4]), ("b", [0, -4, -8])]


def test_files_of_samples_tell_each(tmp_path: Path) -> None:
    columns = {
        "sample": [0],
        "seed": [9],
        "condition": [""],
        "reward": [0.5],
        "reward/gc": [0.25],
        "reward/my own": [1],
    }
    found = pa.table({**columns, "reward/my own": [1], "sequence": ["ACGT"]})
    kind = Sequences(Alphabet.of("dna"), Evaluate())
    kind.write(found, kind.place(str(tmp_path)))
    (row,) = csv.DictReader((tmp_path / "samples.csv").open())
    assert (row["reward"], row["reward/gc"], row["reward/my own"]) == ("0.5", "0.25", "1")
    assert (tmp_path / "samples.fasta").read_text().startswith(">0 reward=0.5 gc=0.25 my_own=1\n")


@pytest.mark.parametrize("name", ["mean", "std", "infeasible"])
def test_names_of_the_sums_metrics_are_refused(name: str, tiny_folder: str, tmp_path: Path) -> None:
    from dav_ray.config.checks.preflight import check

    (tmp_path / "r.yaml").write_text(f"model: {{path: {tiny_folder}}}\nprompts: [a]\nreward: {{kind: brightness}}\n")
    two = f"reward=[{{kind: brightness, name: {name}}}, {{kind: target_colour}}]"
    with pytest.raises(UserError) as caught:
        check(load(str(tmp_path / "r.yaml"), [two]).config)
    assert caught.value.lines == [f"reward[0].name = {name}: is the name of a metric; allowed: another name"]
    check(load(str(tmp_path / "r.yaml"), [f"reward={{kind: brightness, name: {name}}}"]).config)
