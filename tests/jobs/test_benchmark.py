"""jobs/performance: contenders that do the same, ratios turn by turn, tables that are what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dav_ray.diffusion.device import quiet
from jobs.performance import limit, study, timing, workloads
from jobs.performance.options import Options
from jobs.performance.parts import rewards, search, switches, waiting
from jobs.performance.timing import Series

TINY = ("search.steps=4", "search.chunk=3", "search.trajectories=3")
pytestmark = pytest.mark.thorough


@pytest.fixture(autouse=True)
def no_bars() -> None:
    quiet()


def test_ratios_are_taken_turn_by_turn() -> None:
    order: list[str] = []

    def contender(name: str, values: list[float]) -> Any:
        return lambda: (order.append(name), values.pop(0))[1]

    found = timing.in_turn({"a": contender("a", [9.0, 1.0, 4.0, 3.0]), "b": contender("b", [9.0, 2.0, 2.0, 1.0])}, 3)
    assert order == ["a", "b"] * 4  # the first turn warms up
    ratios = found["a"].over(found["b"])
    assert ratios.values == (0.5, 2.0, 3.0) and ratios.median == 2.0
    assert ratios.show() == "2 (0.5-3)"


def test_the_best_batch_is_quickest_per_row_and_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    costs = {1: 5.0, 2: 6.0, 4: 16.0}  # per call: 5, 3 and 4 per row

    def work(size: int) -> Any:
        def call() -> None:
            if size > 4:
                raise torch.OutOfMemoryError
            clock[0] += costs[size]

        return call

    monkeypatch.setattr(timing, "now", lambda device: clock[0])
    assert timing.best_batch(work, (1, 2, 4, 8, 16), "cpu") == 2


def test_the_limit_is_evaluations_and_decodings_at_their_best_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock of its own: a pass of n states takes 2 + n, a decoding 1 + 3 n, and more than 8 at once 100."""
    clock = [0.0]

    def call(first: float, each: float, size: int) -> Any:
        def work() -> None:
            clock[0] += first + each * size + 100 * (size > 8)

        return work

    seen: list[Any] = []
    monkeypatch.setattr(timing, "now", lambda device: clock[0])
    monkeypatch.setattr(limit, "forward", lambda work, size, policy: seen.append(policy) or call(2, 1, size))
    monkeypatch.setattr(limit, "decoding", lambda work, size, vae: call(1, 3, size))
    work = workloads.workload("digits", tmp_path, "cpu", TINY)
    found = limit.limit(work, evaluations=13, decodings=16)

    assert found.decoder is not None and (found.network.batch, found.decoder.batch) == (8, 8)
    assert found.seconds() == pytest.approx(13 * 10 / 8 + 16 * 25 / 8)
    names = [name for name, _ in seen[0].named_parameters()]
    assert names and not [name for name in names if "lora" in name]  # as if they were merged


def test_sequences_are_not_decoded(tmp_path: Path) -> None:
    work = workloads.workload("dna", tmp_path, "cpu", [*TINY, "search.candidates=3", "model.path=shipped:dna"])
    assert limit.limit(work, evaluations=7, decodings=12).decoder is None


def test_a_choice_is_moved_by_what_is_not_scored(tmp_path: Path) -> None:
    """By nothing where nothing is skipped; where all is, as far as from a uniform choice."""
    plain, same, half, none = (
        workloads.workload("digits", tmp_path, "cpu", [*TINY, f"search.score_every={n}"]) for n in (1, 1, 2, 4)
    )
    gaps = [switches.choice_gap(plain, work) for work in (same, half, none)]

    assert gaps[0] == 0 and 0 < gaps[1] < gaps[2] < 0.75


@pytest.mark.parametrize("name", ["digits", "dna"])
def test_the_plain_loop_accepts_what_the_search_accepts(name: str, tmp_path: Path) -> None:
    """The same draws and choices: only the order of the work differs."""
    words = [*TINY, *(["search.candidates=3"] if name == "dna" else [])]
    work = workloads.workload(name, tmp_path, "cpu", words)
    assert work.batch == 3
    found = search.search(work)
    torch.testing.assert_close(search.plain(work, work.chunk), found.reward, rtol=1e-3, atol=1e-3)


def test_rewards_are_shown_what_a_search_sends_and_timed_in_one_thread(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        rewards, "KINDS", (("jpeg_compressibility", 64, 4), ("brightness", 64, 4), ("gc_content", 50, 4))
    )
    found = rewards.run(Options((), 1, "cpu", tmp_path))
    assert [each.bytes for each in found.measured] == [3 * 64 * 64, 4 * 3 * 64 * 64, 8 * 50]
    assert all(each.per_s.median > 0 for each in found.measured)
    (table,) = found.tables
    assert table.rows[0][:3] == ("jpeg_compressibility", "64 x 64", "12,288")


@pytest.mark.slow
def test_the_m_steps_limit_and_ours_are_told_per_transition(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert study.main(["--parts", "fit", "--workloads", "digits", "--turns", "1", "--out", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "benchmark.json").read_text())["fit"]
    limit, ours = (row["times"][name]["values"][0] for name in ("limit", "ours"))
    assert 0 < limit < 1 and 0 < ours < 1
    assert f"| digits | {row['batch']} | {limit * 1000:.3g} (" in capsys.readouterr().out


def test_waiting_is_shown_beside_the_first_row() -> None:
    first = waiting.Waiting("pool", 1, 0.05, Series((2.0, 4.0, 2.0)), Series((0.5, 0.4, 0.6)))
    other = waiting.Waiting("pool", 2, 0.05, Series((1.0, 3.0, 2.0)), Series((0.1, 0.2, 0.3)))
    assert first.row(first) == ("pool", "1", "0.05", "2 (2-4)", "0.5 (0.4-0.6)", "1 (1-1)")
    assert other.row(first) == ("pool", "2", "0.05", "2 (1-3)", "0.2 (0.1-0.3)", "0.75 (0.5-1)")
