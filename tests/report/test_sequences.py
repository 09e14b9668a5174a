"""The report of a run on sequences: logos, best sequences, and no pictures."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dav_ray.diffusion.masked.alphabet import Alphabet
from dav_ray.report.charts import edit_distance_histogram, reward_against_diversity
from dav_ray.report.data import load_accepted, load_run
from dav_ray.report.logos import LINE, draw, information
from dav_ray.report.page import headline, render, reward_rise
from dav_ray.report.sequences import best_rows, sequence_report
from dav_ray.run_dir.storage.uri import open_storage
from tests.report.test_page import MANIFEST, VERSIONS, load, without_plotly, write_metrics

CONFIG = """\
rounds: 3
model: {kind: masked, path: "shipped:dna", alphabet: ALPHABET}
prompts: [""]
reward: [{kind: activity}]
"""
LENGTH, COUNT = 12, 20


def line(round_: int, **changed: float) -> dict[str, object]:
    values = {
        "evaluate/reward_mean": 1.0 + round_,
        "evaluate/reward_std": 0.5,
        "median/reward": 1.1 + round_,
        "heldout/gc": 0.5 + 0.1 * round_,
        "median/gc": 0.4 + 0.1 * round_,
        "heldout/elbo": -16.0 - round_,
        "median/elbo": -15.0 - round_,
        "heldout/kmer_correlation": 0.9 - 0.1 * round_,
        "diversity/edit_distance": 8.0 - 2 * round_,
        "diversity/unique": 1.0 - 0.1 * round_,
        **changed,
    }
    return {"round": round_, "role": "evaluate", **values}


def texts(round_: int, letters: str = "ACGT") -> list[str]:
    rng = np.random.default_rng(round_)
    return ["".join(rng.choice(list(letters), LENGTH)) for _ in range(COUNT)]


def make_run(run: Path, rounds: int = 3, letters: str = "ACGT") -> Path:
    (run / "evaluate").mkdir(parents=True)
    (run / "config.yaml").write_text(CONFIG.replace("ALPHABET", json.dumps(letters)))
    (run / "manifest.json").write_text(json.dumps({**MANIFEST, "round": rounds + 1, "closed": rounds, "shards": []}))
    write_metrics(run, [line(r) for r in range(rounds + 1)])
    for round_ in range(rounds + 1):
        rows = {
            "sample": list(range(COUNT)),
            "condition": [""] * COUNT,
            "reward": [-math.inf, *(0.1 * i for i in range(1, COUNT))],
            "sequence": texts(round_, letters),
            "heldout/gc": [0.5] * COUNT,
        }
        pq.write_table(pa.table(rows), run / "evaluate" / f"round-{round_:04d}.parquet")
    return run


def accept(run: Path, round_: int, rows: dict[str, float]) -> dict[str, Any]:
    """A shard, as a manifest names it."""
    path = f"buffer/round={round_:04d}/chunk-00000.parquet"
    (run / path).parent.mkdir(parents=True)
    pq.write_table(
        pa.table({"sequence": list(rows), "reward": list(rows.values()), "states": [b""] * len(rows)}), run / path
    )
    sha256 = hashlib.sha256((run / path).read_bytes()).hexdigest()
    return {"path": path, "sha256": sha256, "chunk": 0, "rows": len(rows), "policy_version": round_ - 1}


def test_information_of_a_position() -> None:
    """All A: log2 4 bits; A and C by halves: 1 bit, shared; all four: none."""
    tokens = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 2], [0, 1, 3]])
    expected = [[2, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0, 0]]

    assert information(tokens, 4) == pytest.approx(np.array(expected))


@pytest.mark.parametrize(
    "name", ["dna", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("rna", "protein", "ab*é#"))]
)
def test_a_logo_is_drawn_in_lines(name: str) -> None:
    alphabet = Alphabet.of(name)
    heights = np.zeros((2 * LINE + 1, len(alphabet.letters)))
    heights[np.arange(len(heights)), np.arange(len(heights)) % len(alphabet.letters)] = 2
    heights[-1] = 0  # nothing at a position is no mistake
    image = Image.open(io.BytesIO(base64.b64decode(draw(heights, alphabet, 2.0).partition(",")[2])))
    one = Image.open(io.BytesIO(base64.b64decode(draw(heights[:LINE], alphabet, 2.0).partition(",")[2])))

    assert image.width == one.width and image.height == pytest.approx(3 * one.height, abs=3)
    dark = np.array(image.convert("L")) < 240
    shares = [dark[:, left : left + 200].mean() for left in range(100, image.width - 200, 200)]
    assert min(shares) > 0.1  # letters from left to right


def test_the_page(tmp_path: Path) -> None:
    page = without_plotly(render(open_storage(str(make_run(tmp_path / "run")))))

    logos = re.findall(r'src="data:image/png;base64,([A-Za-z0-9+/=]+)" alt="sequence logo of round (\d)"', page)
    assert [int(round_) for _, round_ in logos] == [0, 1, 2, 3]
    assert Image.open(io.BytesIO(base64.b64decode(logos[0][0]))).width > 1000
    assert page.count('<td class="sequence">') == COUNT - 1  # distinct, and without the infeasible one
    assert "Distribution of pairwise edit distances" in page and "mean pairwise edit distance" in page
    for title in ("k-mer correlation", "ELBO", "Diversity: edit distance", "Diversity: unique", "Feasible", "Median"):
        assert f"<dt>{title}</dt>" in page
    assert "Diversity: features" not in page and "within prompt" not in page
    assert all(value.startswith("data:") for value in re.findall(r'(?:src|href)="([^"]*)"', page))
    assert len(page) < 2e6


def test_letters_are_escaped(tmp_path: Path) -> None:
    page = without_plotly(render(open_storage(str(make_run(tmp_path / "run", rounds=0, letters="<'&\"")))))
    cells = re.findall(r'<td class="sequence">(.*?)</td>', page)

    assert len(cells) == COUNT - 1
    assert all(re.fullmatch(r"(&lt;|&#39;|&amp;|&#34;){12}", cell) for cell in cells)


def test_headline_has_medians(tmp_path: Path) -> None:
    rows = {row.measure: (row.pretrained, row.last, row.change) for row in headline(load(make_run(tmp_path / "run")))}

    assert rows == {
        "Reward: activity": ("1 ± 0.5", "4 ± 0.5", "+6 sd"),
        "Reward: activity, median": ("1.1", "4.1", "+3"),
        "Held out: ELBO (nats per sequence)": ("−16", "−19", "−3"),
        "Held out: ELBO (nats per sequence), median": ("−15", "−18", "−3"),
        "Held out: gc": ("0.5", "0.8", "+0.3"),
        "Held out: gc, median": ("0.4", "0.7", "+0.3"),
        "Held out: k-mer correlation": ("0.9", "0.6", "−0.3"),
        "Diversity: edit distance": ("8", "2", "25.0 % of pretrained"),
        "Diversity: unique": ("1", "0.7", "70.0 % of pretrained"),
    }


def test_a_round_without_a_feasible_sample(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    last = {name: value for name, value in line(3).items() if name not in ("evaluate/reward_mean", "median/reward")}
    write_metrics(run, [line(0), line(1), {**last, "evaluate/feasible": 0.0}])
    data = load(run)
    rows = {row.measure: (row.pretrained, row.last, row.change) for row in headline(data)}

    assert data.evaluated == [0, 1, 3] and reward_rise(data) is None
    assert rows["Reward: activity"][1] == "–"
    assert rows["Feasible (share of samples with a finite reward)"] == ("1", "0", "−1")
    assert "After round 3" in render(open_storage(str(run)))


def test_reward_against_edit_distance(tmp_path: Path) -> None:
    chart = reward_against_diversity(load(make_run(tmp_path / "run")))
    assert chart is not None and chart.figure["data"][0]["x"] == [8, 6, 4, 2]


def test_edit_distances_are_counted_by_pair() -> None:
    near, far = np.array([[0, 1, 3], [1, 0, 3], [3, 3, 0]]), np.array([[0, 50], [50, 0]])
    chart = edit_distance_histogram({0: far, 3: near})
    assert chart is not None
    pretrained, last = chart.figure["data"]

    assert (pretrained["name"], last["name"]) == ("pretrained (n = 2)", "round 3 (n = 3)")
    assert last["width"] == 2  # letters: 0..50 in at most 40 bars
    assert dict(zip(last["x"], last["y"], strict=True)) == pytest.approx({0.5: 100 / 3, 2.5: 200 / 3})
    assert (pretrained["x"][-1], pretrained["y"][-1], sum(pretrained["y"])) == (50.5, 100, 100)
    assert edit_distance_histogram({0: np.zeros((1, 1), int)}) is None


def test_the_best_are_of_samples_and_accepted_trajectories(tmp_path: Path) -> None:
    last = pa.table({"sequence": ["AA", "CC", "AA"], "reward": [1.0, 3.0, 1.0], "heldout/x": [7.0, 8.0, 7.0]})
    accepted = pa.table({"sequence": ["GG", "AA", "TT"], "reward": [4.0, 2.0, -math.inf]})
    rows = best_rows(last, accepted, ["heldout/x"], ["AC", "TT"])

    assert [(row.text, row.reward, row.heldout, row.seen, row.distance) for row in rows] == [
        ("GG", 4.0, [None], 1, 2),
        ("CC", 3.0, [8.0], 1, 1),
        ("AA", 2.0, [7.0], 3, 1),
    ]
    assert [row.distance for row in best_rows(last, None, [], [])] == [None, None]


def test_only_what_manifests_name_was_accepted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rounds=2)
    (run / "manifests").mkdir()
    closed = [accept(run, 1, {"A": 1.0}), {**accept(run, 9, {}), "path": "buffer/round=0001/removed.parquet"}]
    (run / "manifests/round-0001.json").write_text(json.dumps({"shards": closed}))
    accept(run, 2, {"C": 2.0})  # an orphan
    found = {**MANIFEST, "versions": VERSIONS, "round": 3, "closed": 2, "shards": [accept(run, 3, {"G": 3.0})]}
    (run / "manifest.json").write_text(json.dumps(found))
    storage = open_storage(str(run))
    table = load_accepted(storage, load_run(storage))

    assert table is not None and table.to_pydict() == {"sequence": ["A", "G"], "reward": [1.0, 3.0]}


def test_many_rounds_are_thinned_and_none_is_no_report(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rounds=7)
    storage = open_storage(str(run))
    found = sequence_report(storage, load_run(storage))
    assert found is not None
    assert [logo.round for logo in found.logos] == [0, 1, 3, 4, 6, 7] and found.rounds_hidden == 2

    for file in (run / "evaluate").iterdir():
        file.unlink()
    assert sequence_report(storage, load_run(storage)) is None
    assert "No samples yet" in render(storage)
