"""The table of families: every pipeline has a case, what is too far apart is said, and measurements are kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dav_ray.config.families.table import PIPELINES
from jobs.families import study
from jobs.families.measured import Differences, Row, Run, faults
from tests.support.pipelines.cases import CASES

GOOD = Row("FluxPipeline", Differences(1e-7, 2e-7, 3e-7, 0.1), Run(40.2, 1, 20))


def test_every_pipeline_has_a_case() -> None:
    assert set(CASES) == set(PIPELINES)


def test_what_is_too_far_apart_is_said() -> None:
    assert faults(GOOD) == faults(replace(GOOD, run=None)) == []
    apart = replace(GOOD, differences=Differences(2e-5, float("nan"), 0.0, 0.0), run=Run(40.0, 2, 2))
    assert [line.partition(":")[0] for line in faults(apart)] == ["output", "picture", "LoRA", "run", "run"]


def test_cells() -> None:
    assert study.cells(GOOD) == ("FluxPipeline", "1e-07", "2e-07", "3e-07", "1 of 255", "40")
    assert study.cells(replace(GOOD, run=None))[-2:] == ("", "")


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()
    monkeypatch.setattr(study, "measured", lambda name: asked.append(name) or GOOD.differences)
    monkeypatch.setattr(study, "whole_run", lambda case, folder: asked.append(case.pipeline) or GOOD.run)
    for _ in range(2):
        assert study.row("FluxPipeline", tmp_path, run=True) == GOOD
    assert asked == ["FluxPipeline"] * 2


@pytest.mark.thorough
def test_a_family_is_measured(tmp_path: Path) -> None:
    row = study.row("DDPMPipeline", tmp_path, run=False)
    assert faults(row) == [] and row.run is None
