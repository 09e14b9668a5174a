"""`dav-ray init`: a recipe of one's own that runs as it is, and copies that mean what their origin means."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from dav_ray.cli.app import app
from dav_ray.config.keys.describe import fields
from dav_ray.config.recipe.comments import WIDTH, commented
from dav_ray.config.recipe.load import load, shipped
from dav_ray.config.recipe.template import TEMPLATE
from tests.support.deadlines import hung
from tests.support.places import ROOT


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


def dav(*words: str) -> tuple[int, str, list[str]]:
    """Exit code, stdout, lines on stderr."""
    result = CliRunner().invoke(app, list(words))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr.splitlines()


def test_the_template_runs_as_it_is_and_shows_what_a_recipe_has(folder: Path) -> None:
    assert dav("init") == (0, "my.yaml written; next: dav-ray run my.yaml --dry-run\n", [])
    assert dav("run", "my.yaml", "--dry-run")[0] == 0

    config = load("my.yaml").config
    assert [(reward.label, reward.weight) for reward in config.reward] == [("jpeg_compressibility", 1), ("ink", 0.1)]
    assert [measure.label for measure in config.evaluate.heldout] == ["legibility"]
    written = yaml.safe_load((folder / "my.yaml").read_text())
    assert written == yaml.safe_load(TEMPLATE)
    assert {"kinds": []} == written["track"] and set(written["roles"]) == {"search", "reward", "train"}


def test_every_comment_of_the_template_is_its_keys_description(folder: Path) -> None:
    dav("init", "sub.yaml")
    text = (folder / "sub.yaml").read_text()
    said = " ".join(line.partition("# ")[2] if "# " in line else "|" for line in text.splitlines())
    keys = ["rounds", "model.path", "prompts", "reward.kind", "reward.weight", "evaluate.heldout", "roles.search"]
    for key in [*keys, "search.alpha", "mstep.lora.targets"]:
        assert str(fields()[key].description) in said, key
    assert "trackers that get the metrics too: tensorboard, wandb, mlflow" in said
    assert max(map(len, text.splitlines())) <= WIDTH


@pytest.mark.parametrize("name", shipped())
def test_a_copy_of_a_shipped_recipe_is_the_same_configuration(name: str) -> None:
    assert dav("init", "--from", name, "mine.yaml")[0] == 0
    assert load("mine.yaml").config == load(name).config
    assert dav("init", "--from", "mine.yaml", "again.yaml")[0] == 0  # comments are there already: none comes twice
    assert Path("again.yaml").read_text() == Path("mine.yaml").read_text()


def test_a_recipes_own_comments_stay() -> None:
    dav("init", "--from", "digits", "mine.yaml")
    lines = Path("mine.yaml").read_text().splitlines()
    assert "  kind: jpeg_compressibility  # minus the kilobytes of the JPEG: higher is smaller" in lines
    assert "  gamma: 0.9  # discount of noisy states: V(x_t) = gamma^t r(x0_hat(x_t)) / alpha" in lines


def test_relative_paths_mean_the_same_elsewhere(folder: Path) -> None:
    (folder / "theirs").mkdir()
    (folder / "theirs/names é.txt").write_text("cat\ndog\n")
    (folder / "masked").mkdir()  # a folder that is called like a value
    (folder / "theirs/a.yaml").write_text(
        "model: {path: 'org/name'}\nprompts: names é.txt\nreward: {kind: brightness}\n"
    )
    (folder / "mine").mkdir()

    assert dav("init", "--from", "theirs/a.yaml", "mine/b.yaml")[0] == 0
    os.chdir("mine")
    assert load("b.yaml").config == load("../theirs/a.yaml").config
    assert load("b.yaml").config.prompts == ("cat", "dog")
    assert str(folder / "theirs/names é.txt") in Path("b.yaml").read_text()


def test_paths_below_a_list_and_code_are_made_absolute(folder: Path) -> None:
    (folder / "theirs").mkdir()
    for name in ("r.py", "golden.npz", "net.safetensors", "masked"):
        (folder / "theirs" / name).write_text("")
    text = (
        "model: {kind: masked, path: 'shipped:dna'}\nreward:\n- {kind: 'r.py:Red', golden: golden.npz}\n"
        "- kind: torch_oracle\n  args: {weights: net.safetensors, model: 'a:B'}\nmstep: {parameters: full}\n"
    )
    (folder / "theirs/a.yaml").write_text(text)
    assert dav("init", "--from", "theirs/a.yaml", "b.yaml")[0] == 0

    home, config = folder / "theirs", load("b.yaml").config
    assert config.model.kind == "masked"
    assert (config.reward[0].kind, config.reward[0].golden) == (f"{home}/r.py:Red", f"{home}/golden.npz")
    assert config.reward[1].args == {"weights": f"{home}/net.safetensors", "model": "a:B"}


@pytest.mark.parametrize(
    "text",
    [
        "a: |\n  text # no comment\n",
        "a: text\n  that goes on\nb: 'it''s # none'\n",
        "a: {b: 1,\n    c: 2}\nd: [1,\n  2]\n",
        "a:\nb: ~\nc:\n- x: 1\n  y: 2\n-\n  x: 3\n",
        "? a\n: b\n",
        "search: {alpha: 1}  # mine\nmstep: # mine too\n  kl: 1\nseed: 0 # é mine\n",
        "seed:\nrounds:\n  3\nprompts: >\n  a file\n",
    ],
)
def test_comments_never_change_what_yaml_says(text: str) -> None:
    assert yaml.safe_load(commented(text)) == yaml.safe_load(text)
    assert commented(commented(text)) == commented(text)
    assert all(f"{own}\n" in f"{commented(text)}" for own in ("# mine", "# mine too", "# é mine") if own in text)


def test_nothing_is_written_over_unasked(folder: Path) -> None:
    (folder / "my.yaml").write_text("mine\n")
    assert dav("init")[::2] == (2, ["dav-ray: my.yaml: is there already; allowed: another path, or --force"])
    assert (folder / "my.yaml").read_text() == "mine\n"
    assert dav("init", "--force")[0] == 0
    assert load("my.yaml").config.rounds == 8


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["."], ".: is a folder; allowed: the path of a new YAML file"),
        (["no/my.yaml"], "no/my.yaml: can't be written: No such file or directory; allowed: a path in a folder of"),
        (["--from", "digit"], "recipe digit: no such file; shipped recipes: "),
        (["--from", "bad.yaml"], "search.alhpa: unknown key; did you mean search.alpha?"),
    ],
)
def test_mistakes(folder: Path, words: list[str], line: str) -> None:
    (folder / "bad.yaml").write_text(
        "model: {path: a/b}\nprompts: [a]\nreward: {kind: brightness}\nsearch: {alhpa: 1}\n"
    )
    code, output, errors = dav("init", *words)
    assert (code, output, len(errors)) == (2, "", 1)
    assert errors[0].startswith(f"dav-ray: {line}")
    assert not (folder / "my.yaml").exists()


def test_what_a_dry_run_prints_is_a_recipe(folder: Path) -> None:
    """Of a recipe with a reward of one's own, too: what its module prints, and that it is imported, is no YAML."""
    (folder / "loud.py").write_text("print('key: value')\nclass Red:\n  def __call__(self, samples, conditions): ...\n")
    words = ["digits", "reward.kind=loud:Red", "search.alpha=0.25"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dav_ray", "run"]
    done = subprocess.run([*command, *words, "--dry-run"], capture_output=True, text=True, env=env, timeout=hung(60))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("# imports loud:Red from ") and done.stdout.endswith("# nothing was started\n")
    assert done.stderr == "key: value\n"

    (folder / "my.yaml").write_text(done.stdout)
    assert load("my.yaml").config == load("digits", words[1:]).config
    assert (
        subprocess.run([*command, "my.yaml", "--dry-run"], env=env, timeout=hung(60), capture_output=True).returncode
        == 0
    )
