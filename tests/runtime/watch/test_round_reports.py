"""The page after every round, written by a task: the driver does not wait for it, and no failure of it ends a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from dav_ray.run_dir.records import RunLog
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.runtime.watch import round_reports
from dav_ray.runtime.watch.progress import Progress
from dav_ray.runtime.watch.round_reports import RoundReports
from tests.report.test_page import make_run
from tests.support.runs import events


def told(run: Path) -> list[str]:
    return [event["event"] for event in events(run)]


def test_pages_and_failures(shared_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = make_run(tmp_path / "good", rounds=2), make_run(tmp_path / "bad", rounds=2)
    (bad / "evaluate/round-0001.parquet").write_bytes(b"damaged")
    reports = {run: RoundReports(str(run), RunLog(open_storage(str(run)), 1), Progress(4)) for run in (good, bad)}
    for run in reports:
        reports[run].update()
        reports[run].update()  # while the first is being written: nothing more is started
        reports[run].end()
    assert told(good) == ["report_written"] and "2 of 4" in (good / "report.html").read_text()
    assert told(bad) == ["report_failed"] and not (bad / "report.html").exists()
    reports[bad].update()
    reports[bad].end()  # once is enough
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and said[0].startswith("the report could not be written (RunError: storage: ")
    assert "round-0001.parquet" in said[0] and f"dav-ray report {bad} tries again" in said[0]


def test_a_page_that_takes_too_long_is_given_up(
    shared_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(round_reports, "LAST_S", 0.0)
    reports = RoundReports(str(tmp_path), RunLog(open_storage(str(tmp_path)), 1), Progress(4))
    reports.update()
    reports.end()
    reports.end()
    assert told(tmp_path) == []
