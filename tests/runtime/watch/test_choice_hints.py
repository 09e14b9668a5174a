"""What is said of idle and blind searches, how often, and in which unit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dav_ray.run_dir.manifest import Shard
from dav_ray.run_dir.records import RunLog
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.runtime.accepted import Accepted, ChunkScores
from dav_ray.runtime.watch.choice_hints import ChoiceHints, alternatives, astray, look
from dav_ray.runtime.watch.progress import Progress
from dav_ray.search.options import Search
from dav_ray.search.weighting.choices import SCALES, Verdict, ladder

SPREAD = torch.randn(500, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def chunk(alpha: float, index: int = 0, rows: int = 2, read_back: bool = False) -> Accepted:
    """Of candidates whose rewards are standard normal numbers."""
    curve = tuple(ladder(SPREAD / alpha).mean(0).tolist())
    shard = Shard("buffer/x", "", index, rows, 0)
    many = tuple(range(rows)), ("a",) * rows, (0.0,) * rows, None, (1.0,) * rows, 4.0
    return Accepted(None, shard, ChunkScores(*many, choices=None if read_back else (curve, curve)))


def hints(folder: Path, search: Search) -> ChoiceHints:
    storage = open_storage(str(folder))
    return ChoiceHints(search, storage, RunLog(storage, 1), Progress(1))


def events(folder: Path) -> list[dict[str, Any]]:
    file = folder / "events.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_each_fault_is_told_once_in_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = hints(tmp_path, Search(alpha=100.0))
    for round in (1, 2):
        first.tell(round, [chunk(100.0)], 4.0, 100.0)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    start = (
        "search: 4 of 4 candidates count in a step: search.alpha = 100 is so large that the reward decides nothing; "
    )
    assert said[0].startswith(f"{start}try search.alpha=")
    suggested = float(said[0].rpartition("=")[2])
    assert look([chunk(suggested)], 4.0, suggested) is None

    (event,) = events(tmp_path)
    assert (event["event"], event["round"], event["kind"], event["of"]) == ("search_choice", 1, "idle", 4.0)
    assert float(event["suggested"]) == suggested and event["alpha"] == 100.0 and event["ess"] > 3.99

    (tmp_path / "events.jsonl").open("a").write('{"event": "search_choice", "ki')  # a driver died here
    second = hints(tmp_path, Search(alpha=100.0))
    second.tell(3, [chunk(100.0)], 4.0, 100.0)
    assert capsys.readouterr().out == ""
    second.tell(4, [chunk(1e-4)], 4.0, 1e-4)  # another fault is news
    assert "so small that one of them decides alone; try search.alpha=" in capsys.readouterr().out


def test_in_standard_deviations_the_advice_is_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = Search.model_validate({"alpha": "50 sd", "kind": "smc"})
    hints(tmp_path, search).tell(1, [chunk(25.0)], 4.0, 25.0)  # the standard deviation is 0.5
    said = capsys.readouterr().out
    assert "particles count in a step: search.alpha = 50 sd is so large" in said
    typed = said.rpartition("search.alpha=")[2].strip()
    assert Search.model_validate({"alpha": typed}).alpha == typed.replace("sd", " sd")
    assert look([chunk(0.5 * float(typed.removesuffix("sd")))], 4.0, 1.0) is None


def test_a_healthy_search_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hints(tmp_path, Search(alpha=1.0)).tell(1, [chunk(1.0)], 4.0, 1.0)
    assert capsys.readouterr().out == "" and events(tmp_path) == []


def test_chunks_count_by_their_rows_and_those_read_back_not_at_all() -> None:
    assert look([chunk(100.0, read_back=True)], 4.0, 100.0) is None
    assert look([chunk(100.0), chunk(1.0, 1, read_back=True)], 4.0, 100.0) is not None
    assert look([chunk(100.0, rows=1), chunk(1.0, 1, rows=9)], 4.0, 100.0) is None
    few = look([chunk(100.0, rows=99), chunk(1.0, 1, rows=1)], 4.0, 100.0)
    assert few is not None and few.ess == pytest.approx(0.99 * 4 + 0.01 * float(ladder(SPREAD).mean(0)[16]), rel=1e-3)


def test_a_blind_tilted_search_is_told_of_standard_deviations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"round": 0, "role": "evaluate", "evaluate/reward_std": 3.0}\n')
    hints(tmp_path, Search(alpha=1e-4, gradient=True)).tell(1, [chunk(1e-4)], 4.0, 1e-4)
    assert capsys.readouterr().out.endswith("; try search.alpha=0.3\n")
    blind = Verdict("blind", 1.0, 4.0, 5.0)
    assert astray(blind, 0.1, 0.0) == blind  # nothing is known of the reward


def test_no_advice_where_none_would_help(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = chunk(1.0)
    same = replace(same, scores=replace(same.scores, choices=((4.0,) * len(SCALES),) * 2))
    hints(tmp_path, Search(alpha=1.0)).tell(1, [same], 4.0, 1.0)
    assert capsys.readouterr().out.endswith("decides nothing; no other would change it\n")
    assert "suggested" not in events(tmp_path)[0]


@pytest.mark.parametrize(
    ("words", "most"),
    [
        ({"candidates": 5}, 5.0),
        ({"kind": "none"}, 1.0),
        ({"kind": "best_of_n"}, 1.0),
        ({"kind": "smc", "particles": 3, "chunk": 6}, (2 * 6 + 3 * 9 + 3) / 6),  # populations of 6, 9 and 3
        ({"kind": "smc", "particles": 3, "chunk": 4}, (2 * 6 + 2 * 6 + 3 + 3) / 6),  # those of b are cut
    ],
)
def test_among_how_many(words: dict[str, Any], most: float) -> None:
    conditions = ["a", "a", "b", "b", "b", "c"]
    assert alternatives(Search.model_validate(words), conditions) == pytest.approx(most)
