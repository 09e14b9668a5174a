"""`dav-ray list`: what recipes can name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dav_ray.cli.app import app
from dav_ray.cli.lists import RECIPES, TABLES, described
from dav_ray.config.recipe.load import shipped
from dav_ray.registry import Registry, load
from tests.support.distributions import install

LISTS = [*TABLES, RECIPES]


@pytest.mark.parametrize("what", LISTS)
def test_one_line_for_each_name(what: str) -> None:
    done = CliRunner().invoke(app, ["list", what])
    rows = json.loads(CliRunner().invoke(app, ["list", what, "--json"]).output)
    names = shipped() if what == RECIPES else [*load(TABLES[what])]

    assert done.exit_code == 0
    assert [line.split()[0] for line in done.output.splitlines()] == [row["name"] for row in rows] == names
    assert all(row["about"] and row["package"] == "dav_ray" and not row["fault"] for row in rows)


@pytest.mark.parametrize("what", TABLES)
def test_every_name_stands_for_something(what: str) -> None:
    registry: Registry = load(TABLES[what])
    for name, entry in registry.builtin.items():
        assert callable(registry.load(name))
        assert not entry.options or isinstance(load(entry.options), type)


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; sys.argv = ['dav-ray', 'list', {!r}]\n"
        "from dav_ray.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({{'torch', 'ray', 'diffusers', 'transformers', 'pandas'}} & sys.modules.keys()))"
    )
    for what in LISTS:
        done = subprocess.run([sys.executable, "-c", code.format(what)], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"


def test_an_unknown_list_is_one_line() -> None:
    done = CliRunner().invoke(app, ["list", "reward"])
    assert done.exit_code == 2
    assert done.stderr.splitlines() == [
        "dav-ray: list reward: there is no such list; allowed: rewards, models, searches, objectives, recipes"
    ]


def test_names_of_other_packages_come_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = 'def greenness(samples, conditions):\n    """How green it is.\n\n    More."""\n'
    points = {"greenness": "greens:greenness", "gone": "nowhere:Gone", "product": "greens:greenness", "bad": "greens"}
    install(tmp_path / "site", "greens-pkg", {"dav_ray.rewards": points}, greens=source)
    monkeypatch.syspath_prepend(tmp_path / "site")

    assert described("greens:greenness") == "How green it is."
    lines = CliRunner().invoke(app, ["list", "rewards"]).output.splitlines()
    shown = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines[-4:]}
    assert shown["greenness"] == "How green it is. (greens-pkg 1.2)"
    assert shown["gone"] == "nowhere:Gone (greens-pkg 1.2)"
    assert shown["product"].startswith("CAN NOT BE USED: is built in: greens-pkg 1.2 can't replace it; allowed: greens")
    assert shown["bad"].startswith("CAN NOT BE USED: greens-pkg 1.2 registers the module greens, and names nothing")
