"""A model family in one new file: named by its module, by its file, or by an entry point of another package."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from dav_ray.cli.app import app
from dav_ray.config.checks.preflight import check
from dav_ray.config.families.table import MODELS, family_of, named
from dav_ray.config.recipe.load import from_yaml, load
from dav_ray.errors import UserError
from dav_ray.evaluation.kinds import sample_kind
from dav_ray.report.data import load_run
from dav_ray.run_dir.storage.local import LocalStorage
from tests.support.deadlines import hung
from tests.support.distributions import install

OWN = '''
from dav_ray.config.families.masked import Masked

print("imported")


class Letters(Masked):
    """Letters of our own."""

    start = "a moment"


class Unfinished(Masked):
    samples = "sequences"

    def __init__(self):
        raise OSError("no licence")


def letters():
    return Letters()
'''
FORMS = ["module", "file", "entry point"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with a family beside it, a folder of installed packages, and the working directory."""
    site, own, here = tmp_path / "site", tmp_path / "own", tmp_path / "here"
    for place in (own, here):
        place.mkdir()
    install(site, "more-models", {"dav_ray.models": {"letters": "registered_family:Letters"}}, registered_family=OWN)
    (own / "own_family.py").write_text(OWN)
    recipe = {
        "model": {"kind": "own_family:Letters", "path": "shipped:dna"},
        "reward": {"kind": "gc_content"},
        "search": {"steps": 8},
    }
    (own / "mine.yaml").write_text(yaml.safe_dump(recipe))
    for module in ("own_family", "registered_family"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.syspath_prepend(site)
    monkeypatch.chdir(here)
    named.cache_clear()
    return own


def kind(by: str) -> str:
    return {"module": "own_family:Letters", "file": "./own_family.py:Letters", "entry point": "letters"}[by]


@pytest.mark.parametrize("by", FORMS)
def test_a_recipe_names_it(folder: Path, by: str) -> None:
    recipe = load(str(folder / "mine.yaml"), [f"model.kind={kind(by)}"])
    again = from_yaml(recipe.yaml, "runs/a/config.yaml").config
    check(recipe.config)
    assert recipe.config.prompts == ("",) and recipe.config.model.alphabet == "dna"  # as the family says
    assert again == recipe.config and again.identity() == recipe.config.identity()
    family = family_of(again.model)
    assert type(family).__name__ == "Letters" and family.start == "a moment" and family.shape(again) == (4, 150)
    assert type(sample_kind(again)).__name__ == "Sequences"


@pytest.mark.thorough
@pytest.mark.parametrize("by", FORMS)
def test_its_import_is_announced_first(folder: Path, by: str) -> None:
    """By a process of its own: once, on standard error, before the module prints; a dry run stays YAML."""
    command = [sys.executable, "-m", "dav_ray", "run", str(folder / "mine.yaml"), f"model.kind={kind(by)}", "--dry-run"]
    site = f"{folder.parent}/site"
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=hung(60),
        env={**os.environ, "PYTHONPATH": os.pathsep.join([site, os.environ.get("PYTHONPATH", "")])},
    )
    assert done.returncode == 0, done.stderr
    where = {
        "module": f"imports own_family:Letters from {folder}/own_family.py (model.kind)",
        "file": f"imports {folder}/own_family.py:Letters (model.kind)",
        "entry point": f"imports registered_family:Letters from {site}/registered_family.py (model.kind)",
    }[by]
    assert done.stderr.splitlines()[:2] == [where, "imported"] and done.stderr.count("model.kind") == 1
    assert yaml.safe_load(done.stdout)["model"]["path"].startswith("shipped:")


def test_a_long_lived_process_hears_of_it_by_logging(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="dav_ray.config.families"):
        load(str(folder / "mine.yaml"), [f"model.kind={folder}/own_family.py:Letters"])
        load(str(folder / "mine.yaml"), [f"model.kind={folder}/own_family.py:Letters"])
    assert [record.getMessage() for record in caplog.records] == [
        f"imports {folder}/own_family.py:Letters (model.kind)"
    ]


@pytest.mark.parametrize(
    "kind, why",
    [
        ("nowhere:A", "can't be used (ModuleNotFoundError: No module named 'nowhere')"),
        ("own_family:Nothing", "can't be used (AttributeError: module 'own_family' has no attribute 'Nothing')"),
        ("own_family:letters", "can't be used (TypeError: is no subclass of dav_ray.config.families.base.Family)"),
        ("own_family:Unfinished", "can't be used (OSError: no licence)"),
        ("dav_ray.config.families.base:Family", "can't be used (TypeError: does not set samples and lora_targets)"),
        ("./nothing.py:A", "can't be used (FileNotFoundError: [Errno 2] No such file or directory: "),
        ("mask", "unknown model family; did you mean masked? allowed: diffusers, letters, masked, or module.path:Name"),
    ],
)
def test_mistakes_are_one_line_each(folder: Path, kind: str, why: str) -> None:
    with pytest.raises(UserError) as caught:
        load(str(folder / "mine.yaml"), [f"model.kind={kind}", 'prompts=[""]'])
    (found,) = caught.value.lines
    assert found.startswith(f"model.kind = {kind}: {why}") and "allowed: " in found


def test_a_report_imports_nothing_of_it(folder: Path) -> None:
    """What it draws is read from what the run wrote."""
    run = folder / "run"
    (run / "evaluate").mkdir(parents=True)
    (run / "config.yaml").write_text((folder / "mine.yaml").read_text())
    assert not load_run(LocalStorage(str(run))).sequences
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"sample": [0], "condition": [""], "reward": [1.0], "sequence": ["ACGT"]}
    pq.write_table(pa.table(columns), run / "evaluate" / "round-0000.parquet")
    assert load_run(LocalStorage(str(run))).sequences
    assert "own_family" not in sys.modules


def test_it_is_listed(folder: Path) -> None:
    assert [*MODELS] == ["diffusers", "masked", "letters"]
    found = json.loads(CliRunner().invoke(app, ["list", "models", "--json"]).output)
    assert found[-1] == {
        "name": "letters",
        "about": "Letters of our own.",
        "package": "more-models 1.2",
        "fault": "",
    }
