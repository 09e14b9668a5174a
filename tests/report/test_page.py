"""The report: figures computed right, everything embedded, everything escaped, any state of a run."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dav_ray.errors import UserError
from dav_ray.report.charts import curves, reward_against_diversity, reward_histogram
from dav_ray.report.data import Sample, load_run, parse_metrics
from dav_ray.report.page import choose_columns, headline, render, reward_rise, sample_grid, thin, write_report
from dav_ray.run_dir.storage.uri import open_storage

CONFIG = """\
seed: 0
rounds: 4
model: {kind: diffusers, path: "shipped:digits"}
prompts: [zero, one, two]
reward: [{kind: jpeg_compressibility}]
evaluate: {samples: 12, grid: 6}
"""
VERSIONS = {"torch": "2.13.0", "ray": "2.60.0"}
MANIFEST = {"epoch": 1, "phase": "search", "policy_version": 0, "versions": VERSIONS}
PROMPTS = ("zero", "one", "two")


def png(rng: np.random.Generator, level: float, side: int = 32) -> bytes:
    """A soft blob on a dark ground, noisier for lower `level`."""
    grid = np.linspace(-1, 1, side)
    blob = np.exp(-4 * (grid[:, None] ** 2 + grid[None, :] ** 2))
    pixels = 255 * np.clip(blob + rng.normal(0, 0.3 / (1 + level), (side, side)), 0, 1)
    out = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).convert("RGB").save(out, "PNG")
    return out.getvalue()


def write_samples(run: Path, round_: int, count: int = 12, prompts: Sequence[str] = PROMPTS, side: int = 32) -> None:
    rng = np.random.default_rng(round_)
    rows = {
        "sample": list(range(count)),
        "seed": [1_000_000 + i for i in range(count)],
        "condition": [prompts[i % len(prompts)] for i in range(count)],
        "reward": (-1.0 + 0.1 * round_ + 0.05 * rng.standard_normal(count)).tolist(),
        "heldout/legibility": [1.0] * count,
        "image": [png(rng, round_, side) for _ in range(count)],
    }
    (run / "evaluate").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(rows), run / "evaluate" / f"round-{round_:04d}.parquet")


def evaluate_line(round_: int, **changed: float) -> dict[str, Any]:
    values = {
        "evaluate/reward_mean": -1.0 + 0.1 * round_,
        "evaluate/reward_std": 0.05,
        "diversity/features": 10.0 - 0.5 * round_,
        "diversity/within_prompt": 8.0 - 0.5 * round_,
        "heldout/legibility": 0.98 - 0.01 * round_,
        "heldout/kl": 1.5 * round_,
        "time/evaluate_s": 3.0,
    }
    return {"time": 1.7e9, "round": round_, "role": "evaluate", **values, **changed}


def metric_lines(rounds: int) -> list[dict[str, Any]]:
    lines = [evaluate_line(0)]
    for r in range(1, rounds + 1):
        search = {
            "reward/mean": -0.95 + 0.1 * r,
            "search/ess": 50.0 - r,
            "search/ess_most": 64.0,
            "search/alpha": 0.005,
            "time/estep_s": 13.0,
        }
        mstep = {"mstep/nll": 4.0 / r, "mstep/kl": 0.2 * r, "mstep/grad_norm": 1.0 / r, "time/mstep_s": 4.5}
        lines.append({"time": 1.7e9, "round": r, "role": "search", "search/nfe_per_sample": 77, **search})
        lines.append({"time": 1.7e9, "round": r, "role": "mstep", "mstep/optimizer_steps": 16, **mstep})
        lines.append(evaluate_line(r))
    return lines


def write_metrics(run: Path, lines: list[dict[str, Any]]) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_run(run: Path, rounds: int = 4, **samples: Any) -> Path:
    """A run directory with `rounds` finished rounds of the configured four."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(CONFIG)
    (run / "manifest.json").write_text(json.dumps({**MANIFEST, "round": rounds + 1, "closed": rounds}))
    write_metrics(run, metric_lines(rounds))
    for round_ in range(rounds + 1):
        write_samples(run, round_, **samples)
    return run


def load(run: Path):
    return load_run(open_storage(str(run)))


def without_plotly(page: str) -> str:
    """The page less plotly's own source, which is by far the longest script."""
    return page.replace(max(re.findall(r"<script>.*?</script>", page, re.S), key=len), "")


def test_writes_beside_the_run_and_returns_the_path(tmp_path: Path) -> None:
    run = make_run(tmp_path / "digits")
    path = write_report(str(run))
    assert path == str(run / "report.html")
    page = Path(path).read_text()
    assert "<h1>digits</h1>" in page and "jpeg_compressibility" in page
    assert 4.0e6 < len(page) < 6.5e6  # plotly is embedded, and once
    assert page.count("Plotly.newPlot(chart") == 1


def test_headline_figures(tmp_path: Path) -> None:
    run = load(make_run(tmp_path))
    assert reward_rise(run) == pytest.approx((-0.6 + 1.0) / 0.05)  # 8 sd
    rows = {row.measure: row for row in headline(run)}
    reward = rows["Reward: jpeg_compressibility"]
    assert (reward.pretrained, reward.last, reward.change) == ("−1 ± 0.05", "−0.6 ± 0.05", "+8 sd")
    legibility = rows["Held out: legibility"]
    assert (legibility.pretrained, legibility.last, legibility.change) == ("0.98", "0.94", "−0.04")
    assert rows["Diversity: features"].last == "8"
    assert rows["Diversity: features"].change == "80.0 % of pretrained"
    assert rows["Diversity: within prompt"].change == "75.0 % of pretrained"
    assert rows["KL to the pretrained model (nats per trajectory)"].last == "6"


def test_how_freely_the_search_chose(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    rows = {row.measure: row for row in headline(load_run(open_storage(str(run))))}
    chosen, alpha = rows["Search: effective candidates of 64"], rows["Search: alpha"]
    assert (chosen.pretrained, chosen.last, chosen.change) == ("", "46", "")
    assert (alpha.last, alpha.change) == ("0.005", "0.1 sd of the pretrained reward")
    assert "ESS (of 64)" in render(open_storage(str(run)))

    older = [{k: v for k, v in line.items() if k != "search/ess_most"} for line in metric_lines(4)]
    write_metrics(run, older)
    assert "Search: effective" not in "".join(row.measure for row in headline(load_run(open_storage(str(run)))))


def test_headline_reaches_the_page(tmp_path: Path) -> None:
    page = without_plotly(render(open_storage(str(make_run(tmp_path)))))
    assert "<strong>+8.00 sd</strong>" in page and "80.0 % of pretrained" in page
    assert "After round 4" in page and "finished" in page and "2.60.0" in page and "shipped:digits" in page


def test_all_images_are_embedded_unchanged(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    page = without_plotly(render(open_storage(str(run))))
    uris = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)
    assert len(uris) == 5 * 6  # rounds 0..4, evaluate.grid columns
    assert page.count('class="crisp"') == 30 and page.count('width="64"') == 30
    images = pq.read_table(run / "evaluate/round-0000.parquet")["image"].to_pylist()
    assert [base64.b64decode(uri) for uri in uris[:6]] == [images[i] for i in (0, 3, 1, 4, 2, 5)]  # by prompt


def test_large_images_become_thumbnails(tmp_path: Path) -> None:
    page = without_plotly(render(open_storage(str(make_run(tmp_path, rounds=0, side=300)))))
    uris = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", page)
    assert len(uris) == 6 and "data:image/png" not in page and 'class="crisp"' not in page
    assert Image.open(io.BytesIO(base64.b64decode(uris[0]))).size == (256, 256)


def test_nothing_is_loaded_from_outside(tmp_path: Path) -> None:
    page = render(open_storage(str(make_run(tmp_path))))
    own = without_plotly(page)
    assert "http://" not in own and "https://" not in own and "@import" not in own and "<link" not in own
    assert all(value.startswith("data:") for value in re.findall(r'(?:src|href)="([^"]*)"', own))
    assert "default-src 'none'" in own


def test_prompts_and_settings_are_escaped(tmp_path: Path) -> None:
    evil = '</script><script>alert("x")</script>'
    run = make_run(tmp_path, rounds=1, prompts=(evil, "one"))
    (run / "config.yaml").write_text(f"rounds: 1\nprompts: ['{evil}']\nreward: {{kind: k, name: '{evil}'}}\n")
    page = render(open_storage(str(run)))
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page  # the prompt, the reward's name and the configuration
    assert r"\u003cscript\u003ealert" in page  # the reward's name in a chart's JSON


def test_charts_have_titles_axes_and_values(tmp_path: Path) -> None:
    run = load(make_run(tmp_path))
    charts = {chart.figure["layout"]["title"]["text"]: chart.figure for chart in curves(run)}
    assert list(charts)[:3] == ["Reward: jpeg_compressibility", "Held out: legibility", "Diversity"]
    assert {
        "E-step: effective number of candidates (smc: of particles)",
        "Time per round",
        "M-step: gradient norm",
    } <= set(charts)
    for figure in charts.values():
        assert figure["layout"]["xaxis"]["title"]["text"] == "round"
        assert figure["layout"]["yaxis"]["title"]["text"]
    band, mean, accepted = charts["Reward: jpeg_compressibility"]["data"]
    assert band["y"] == pytest.approx([-0.95, -0.85, -0.75, -0.65, -0.55, -0.65, -0.75, -0.85, -0.95, -1.05])
    assert mean["x"] == [0, 1, 2, 3, 4] and accepted["x"] == [1, 2, 3, 4]
    assert charts["Diversity"]["data"][0]["y"] == pytest.approx([100, 95, 90, 85, 80])
    assert [bar["name"] for bar in charts["Time per round"]["data"]] == ["E-step", "M-step", "evaluation"]
    assert charts["Time per round"]["data"][2]["x"] == [0, 1, 2, 3, 4]


def test_reward_against_diversity_and_histogram(tmp_path: Path) -> None:
    run = load(make_run(tmp_path))
    scatter = reward_against_diversity(run)
    assert scatter is not None
    assert scatter.figure["data"][0]["x"] == pytest.approx([10, 9.5, 9, 8.5, 8])
    assert scatter.figure["data"][0]["text"][:2] == ["pretrained", "1"]
    histogram = reward_histogram(run, {0: [1.0, 2.0], 4: [2.0, 4.0, 3.0]})
    assert histogram is not None
    assert [trace["name"] for trace in histogram.figure["data"]] == ["pretrained (n = 2)", "round 4 (n = 3)"]
    assert len({json.dumps(trace["xbins"]) for trace in histogram.figure["data"]}) == 1


def test_the_last_of_repeated_lines_counts(tmp_path: Path) -> None:
    run = make_run(tmp_path, rounds=1)
    again = evaluate_line(1, **{"evaluate/reward_mean": -0.5})
    del again["heldout/kl"]
    write_metrics(run, [*metric_lines(1), again])
    data = load(run)
    assert data.series("evaluate/reward_mean") == {0: -1.0, 1: -0.5}
    assert data.series("heldout/kl") == {0: 0.0}  # the repeated line replaces the whole line
    assert reward_rise(data) == pytest.approx(10.0)


def test_values_that_are_no_finite_numbers_are_left_out() -> None:
    line = '{"round": 1, "role": "search", "search/ess": NaN, "reward/mean": 2, "note/text": "x"}'
    assert parse_metrics([line]) == {"reward/mean": {1: 2.0}}


def test_a_broken_metrics_line_is_named() -> None:
    with pytest.raises(UserError, match="line 1"):
        parse_metrics(["{"])


@pytest.mark.parametrize("keep_samples", [True, False])
def test_only_round_zero(tmp_path: Path, keep_samples: bool) -> None:
    run = make_run(tmp_path, rounds=0)
    if not keep_samples:
        (run / "evaluate/round-0000.parquet").unlink()
    page = without_plotly(render(open_storage(str(run))))
    assert "Only the pretrained model has been evaluated" in page and "After round" not in page
    assert "0 of 4" in page and "not finished" in page
    assert page.count("data:image/png") == (6 if keep_samples else 0)


def test_a_run_in_its_first_search(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "manifest.json").write_text(json.dumps({**MANIFEST, "round": 1, "closed": 0}))
    page = without_plotly(render(open_storage(str(tmp_path))))
    assert "This run has no metrics yet" in page and "No samples yet" in page
    assert "not finished: round 1, search" in page


def test_a_run_without_evaluation(tmp_path: Path) -> None:
    run = make_run(tmp_path, rounds=0)
    (run / "evaluate/round-0000.parquet").unlink()
    write_metrics(run, [line for line in metric_lines(2) if line["role"] != "evaluate"])
    page = without_plotly(render(open_storage(str(run))))
    assert "No round has been evaluated yet" in page and "effective number of candidates" in page
    assert "0 of 4" in page and "not finished: round 1, search" in page


def test_a_run_that_ended_early_is_finished(tmp_path: Path) -> None:
    run = make_run(tmp_path, rounds=2)
    (run / "manifest.json").write_text(json.dumps({**MANIFEST, "round": 3, "closed": 2, "phase": "done"}))
    data = load(run)
    assert (data.rounds_done, data.rounds_total, data.status) == (2, 4, "finished")
    page = without_plotly(render(open_storage(str(run))))
    assert "<span>Rounds done</span>2</li>" in page  # not those that config.yaml says


def test_rounds_of_different_sizes_are_told(tmp_path: Path) -> None:
    """By the metrics, and for rounds of before they told, by the files. The grid has gaps, the new measure no past."""
    run = make_run(tmp_path, rounds=3)
    assert "different numbers of samples" not in render(open_storage(str(run)))
    lines = metric_lines(4)
    lines[-1] |= {"evaluate/samples": 5.0, "heldout/new": 0.5}
    write_metrics(run, lines)
    write_samples(run, 4, count=5)
    page = without_plotly(render(open_storage(str(run))))
    assert "on different numbers of samples: 12 in rounds 0 to 3, 5 in round 4." in page
    (row,) = [row for row in headline(load(run)) if row.measure == "Held out: new"]
    assert (row.pretrained, row.last, row.change) == ("–", "0.5", "")


def test_a_run_that_started_from_a_policy_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path, rounds=2)
    (run / "config.yaml").write_text(f"{CONFIG}init: {{run: /runs/earlier, version: 7}}\n")
    page = without_plotly(render(open_storage(str(run))))
    assert "The initial policy (round 0) is version 7 of /runs/earlier." in page
    assert "<th>Initial policy</th>" in page and "initial policy (n = 12)" in page
    assert "of the initial policy's samples after round 2" in " ".join(page.split())


def test_samples_missing_from_a_round_leave_a_gap(tmp_path: Path) -> None:
    run = make_run(tmp_path, rounds=1)
    write_samples(run, 1, count=2)
    grid = sample_grid(open_storage(str(run)), load(run))
    assert grid is not None and grid.prompts == [("zero", 2), ("one", 2), ("two", 2)]
    assert [cell is None for cell in grid.rows[1].cells] == [False, True, False, True, True, True]


def test_no_run_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run in"):
        write_report(str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


def test_thinning_keeps_both_ends() -> None:
    assert thin([0, 1, 2], 12) == [0, 1, 2]
    kept = thin(list(range(101)), 12)
    assert len(kept) == len(set(kept)) == 12 and kept[0] == 0 and kept[-1] == 100
    assert max(np.diff(kept)) - min(np.diff(kept)) <= 1


def test_columns_cover_the_prompts_in_any_order() -> None:
    blocked = [Sample(i, "ab"[i // 10], 0.0) for i in range(20)]
    chosen = [(sample.condition, sample.index) for sample in choose_columns(blocked, 4)]
    assert chosen == [("a", 0), ("a", 1), ("b", 10), ("b", 11)]
