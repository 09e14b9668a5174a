"""The pages of the studies: their tables are those of results.json, and a new measurement takes its place."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.compare.page import PAGE as COMPARE
from jobs.overlap.study import simulated, simulated_tables
from jobs.performance.parts.switches import enumerated, laws
from jobs.tables import ORIGINS, Page, Table, places_of
from tests.support.places import JOBS, ROOT

STUDIES = sorted(results.parent.name for results in JOBS.glob("*/results.json"))
TABLE = Table("Of two: A & b", ("x", "y"), (("1", "2"), ("3", "")), "What x is.")
PAGE = (
    "# Title\n\n<!-- table: measured -->\n<!-- end -->\n\nText.\n\n"
    "<!-- table: of-two-a-b -->\nold\n<!-- end -->\n\nEnd.\n"
)


@pytest.fixture
def page(tmp_path: Path) -> Page:
    (tmp_path / "README.md").write_text(PAGE)
    return Page(tmp_path)


@pytest.mark.parametrize("study", STUDIES)
def test_the_stored_results_give_the_page(study: str, tmp_path: Path) -> None:
    shutil.copytree(JOBS / study, tmp_path / study, ignore=shutil.ignore_patterns("__pycache__"))
    again = Page(tmp_path / study)
    assert again.show_stored(write=True) == 0
    assert again.readme.read_text() == (JOBS / study / "README.md").read_text()


def test_the_repositorys_page_shows_the_same_tables() -> None:
    shown = (ROOT / "README.md").read_text()
    for each in COMPARE.stored():
        if each.table.name in places_of(ROOT / "README.md"):
            assert f"<!-- table: {each.table.name} -->\n\n{each.table.markdown()}\n<!-- end -->" in shown


def test_every_place_belongs_to_a_study() -> None:
    known = {each.table.name for study in STUDIES for each in Page(JOBS / study).stored()}
    places = {name for page in [ROOT / "README.md", *JOBS.glob("*/README.md")] for name in places_of(page)}
    assert STUDIES and places - {ORIGINS} <= known


def test_figures_of_the_pages_exist() -> None:
    for readme in JOBS.glob("*/README.md"):
        for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", readme.read_text()):
            assert (readme.parent / name).is_file(), name


def test_a_measured_table_takes_its_place(page: Page, tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "out").mkdir()
    for name in ("figures/a.png", "out/b.png"):
        (tmp_path / name).write_bytes(b"old")
    (tmp_path / "out/a.png").write_bytes(b"new")
    page.publish([TABLE], ["--scale", "0.5", "--out", "x", "--write-readme"], figures=tmp_path / "out")

    text = page.readme.read_text()
    table = "**Of two: A & b**\n\n| x | y |\n| --- | --- |\n| 1 | 2 |\n| 3 |  |\n\nWhat x is.\n"
    assert f"<!-- table: of-two-a-b -->\n\n{table}\n<!-- end -->\n\nEnd.\n" in text and "old" not in text
    assert f"`python jobs/{tmp_path.name} --scale 0.5`" in text
    assert page.stored()[0].table == TABLE
    assert (tmp_path / "figures/a.png").read_bytes() == b"new" and not (tmp_path / "figures/b.png").exists()
    page.publish([TABLE], ["--scale", "0.5"])
    assert page.readme.read_text() == text


def test_tables_that_were_not_measured_again_stay(page: Page) -> None:
    page.readme.write_text(PAGE + "\n<!-- table: other -->\n<!-- end -->\n")
    other = Table("Other", ("z",), (("1",),))
    page.publish([TABLE, other], ["--seed", "1"])
    page.publish([Table("Other", ("z",), (("2",),))], ["--seed", "2"])

    first, second = page.stored()
    assert first.table == TABLE and second.table.rows == (("2",),)
    text = page.readme.read_text()
    assert re.search(r"^- Of two: A & b: .*--seed 1`$", text, re.M) and re.search(r"^- Other: .*--seed 2`$", text, re.M)


def test_a_table_without_a_place_and_a_place_without_a_table_are_named(page: Page) -> None:
    with pytest.raises(ValueError, match="no place for else"):
        page.publish([TABLE, Table("Else", ("x",), ())], [])
    assert not page.results.exists() and page.readme.read_text() == PAGE
    with pytest.raises(ValueError, match="no results for of-two-a-b"):
        page.write()


def test_enumerated_laws_are_those_of_the_page() -> None:
    """No sample and no clock is in them: they are the same on every machine."""
    assert enumerated(laws()) in [each.table for each in Page(JOBS / "performance").stored()]


@pytest.mark.slow
def test_the_simulated_pool_is_that_of_the_page() -> None:
    stored = [each.table for each in Page(JOBS / "overlap").stored()]
    assert all(table in stored for table in simulated_tables(simulated()))


SLOW = [("validation",), ("performance",), ("chaos",), ("overlap",), ("compare", "digits"), ("compare", "dna")]
SLOW += [(f"{name}.py",) for name in ("validate", "benchmark", "chaos", "overlap", "compare", "compare_ehrlich")]


@pytest.mark.parametrize(
    "words", [("compare_dna.py",), *(pytest.param(words, marks=pytest.mark.slow) for words in SLOW)]
)
def test_commands_work_from_any_folder(words: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, str(JOBS / words[0]), *words[1:], "--stored"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("**") and not list(tmp_path.iterdir())


def test_a_comparison_that_is_not_there_is_refused(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(JOBS / "compare"), "cats"], capture_output=True, text=True, cwd=tmp_path)
    allowed = "digits, digits_flow, digits_turbo, dna, ehrlich"
    assert (done.returncode, done.stderr) == (2, f"jobs/compare: cats; allowed: {allowed}\n")
