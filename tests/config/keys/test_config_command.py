"""`dav-ray config`: every key, in the width of a terminal, for programs, and as a JSON schema for editors."""

from __future__ import annotations

import functools
import json
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from dav_ray.cli.app import app
from dav_ray.config.identity import listed, may_change, reason
from dav_ray.config.keys.describe import allowed, fields, section_of
from dav_ray.config.keys.json_schema import recipe_schema
from dav_ray.config.keys.table import render, table
from dav_ray.config.recipe.load import SHIPPED, shipped
from dav_ray.config.recipe.template import TEMPLATE

MINIMAL: dict[str, Any] = {"model": {"path": "a/b"}, "prompts": ["cat"], "reward": {"kind": "brightness"}}


def config(*words: str, columns: int = 80) -> tuple[int, str, list[str]]:
    """Exit code, stdout, lines on stderr."""
    result = CliRunner().invoke(app, ["config", *words], env={"COLUMNS": str(columns)})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr.splitlines()


def test_every_key_is_described() -> None:
    assert [key for key, field in fields().items() if not field.description] == []
    output = config()[1]
    for key in ("search.alpha", "mstep.lora.rank", "roles.train.labels", "evaluate.heldout.kind", "model.path"):
        assert f"\n{key} " in output
    assert "wrong type" not in output and "\nreward.role.cpus" not in output
    assert "\nmodel.path required  (text)\n" in output


@pytest.mark.parametrize("columns", [40, 80, 100])
def test_no_line_is_wider_than_the_terminal(columns: int) -> None:
    assert max(map(len, config(columns=columns)[1].splitlines())) <= columns
    longest = max(table(), key=lambda key: len(key.meaning)).meaning
    assert longest in " ".join(config(columns=columns)[1].split())  # wrapped, and whole


def test_a_section_a_key_and_a_wrong_one() -> None:
    told = f"search.gamma = 0.9  ({allowed('search.gamma')}) {fields()['search.gamma'].description}"
    assert " ".join(config("search.gamma")[1].split()) == " ".join(f"{told} {reason('search.gamma')}".split())
    keys = config("mstep")[1].partition("\n\n")[0].splitlines()
    heads = [line.split()[0] for line in keys if not line.startswith(" ")]
    assert heads == [key for key in fields() if key.startswith("mstep.") and key != "mstep.lora"]
    assert config("reward[0].kind")[1] == config("reward.kind")[1]
    assert "\nreward.role.cpus " in config("reward.role")[1]
    for wrong, hint in (("alpha", "search.alpha"), ("serach", "search"), ("search.alhpa", "search.alpha")):
        assert config(wrong) == (2, "", [f"dav-ray: {wrong}: unknown key; did you mean {hint}?"])


def test_what_may_change_is_marked() -> None:
    assert all(key.may_change == may_change(key.key) for key in table())
    lines = render(table("roles.search"), 100).splitlines()
    assert "roles.search.replicas = 1  (a whole number >= 1 and <= 10000; may change)" in lines
    assert "roles.search.threads = 1  (a whole number >= 1 and <= 1024)" in lines
    assert lines[lines.index("") + 1] == "What may change when a run directory is gone on with, and what not:"
    told = " ".join(line.strip() for line in lines[lines.index("") + 2 :])
    assert told == " ".join(listed())  # all of the list, and why
    (one,) = table("rounds")
    assert one.why == reason("rounds") and one.why in " ".join(render([one], 300).split())


def test_json_has_every_key_with_its_default() -> None:
    rows = json.loads(config("--json")[1])
    plain = [key for key in fields() if not section_of(fields()[key].annotation)]
    assert [row["key"] for row in rows] == [key for key in plain if ".role." not in key]
    found = {row["key"]: row for row in rows}
    assert found["search.alpha"] == {
        "key": "search.alpha",
        "default": 0.005,
        "required": False,
        "allowed": allowed("search.alpha"),
        "meaning": fields()["search.alpha"].description,
        "may_change": False,
        "why": reason("search.alpha"),
    }
    assert found["mstep.lora.targets"]["default"] is None and found["mstep.lora.rank"]["default"] == 16
    assert found["model.path"]["required"] and "default" not in found["model.path"]
    assert json.loads(config("track", "--json")[1])[0]["may_change"]


@functools.cache
def schema() -> jsonschema.Draft202012Validator:
    found = json.loads(json.dumps(recipe_schema()))
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def valid(recipe: Any) -> bool:
    return not list(schema().iter_errors(recipe))


def test_the_schema_accepts_every_shipped_recipe_and_the_template() -> None:
    assert json.loads(config("--schema")[1]) == recipe_schema()
    for name in shipped():
        assert valid(yaml.safe_load((SHIPPED / f"{name}.yaml").read_text())), name
    assert valid(yaml.safe_load(TEMPLATE)) and valid(MINIMAL)
    assert valid({**MINIMAL, "prompts": "names.txt", "reward": [{"kind": "brightness", "weight": 2}]})
    assert valid({**MINIMAL, "rounds": "${oc.env:ROUNDS,3}", "model": {"path": "a/b", "dtype": "${oc.env:DTYPE}"}})


@pytest.mark.parametrize(
    "change",
    [
        {"serach": {}},
        {"search": {"alhpa": 1}},
        {"search": {"alpha": 0}},
        {"search": {"kind": "dva"}},
        {"reward": {"kind": "brightness", "knd": 1}},
        {"reward": [{"weight": 1}]},
        {"reward": []},
        {"prompts": []},
        {"prompts": 3},
        {"rounds": "three"},
        {"model": {}},
        {"track": {"kinds": ["comet"]}},
        {"roles": {"train": {"min_replicas": 1}}},
    ],
)
def test_the_schema_refuses_what_a_run_refuses(change: dict[str, Any]) -> None:
    assert not valid({**MINIMAL, **change})


def test_the_schema_is_of_whole_recipes() -> None:
    line = "dav-ray: --schema: is of whole recipes, and is JSON; allowed: alone"
    assert config("search", "--schema") == (2, "", [line])
