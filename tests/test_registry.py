"""Code of the user's own, by module or by file: found, made absolute before it is frozen, loaded once."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from dav_ray.config.checks.preflight import check
from dav_ray.config.checks.user_code import announced
from dav_ray.config.recipe.load import from_yaml
from dav_ray.config.recipe.load import load as load_recipe
from dav_ray.errors import UserError
from dav_ray.registry import Entry, absolute, is_file, load, split
from dav_ray.rewards.base import local_scorer
from dav_ray.rewards.registry import REWARDS, build, features
from tests.support.distributions import install

OWN = """
import dataclasses

import torch
from beside import SHIFT

@dataclasses.dataclass
class Redness:
    times: float = 1.0
    differentiable = True

    def __call__(self, samples, conditions):
        return self.times * samples[:, 0].mean(dim=(1, 2)) + SHIFT

def redness(samples, conditions, times=1.0):
    return times * samples[:, 0].mean(dim=(1, 2))

def smooth(samples, conditions):
    return samples.flatten(1).mean(1)

smooth.differentiable = True

def linear(width):
    return torch.nn.Linear(width, 1)
"""
IMAGES = torch.rand((3, 3, 4, 4), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: str) -> Path:
    """A recipe with rewards beside it; the working directory is another one."""
    own, here = tmp_path / "own", tmp_path / "here"
    own.mkdir()
    here.mkdir()
    (own / "my rewards.py").write_text(OWN)
    (own / "beside.py").write_text("SHIFT = 0.5\n")
    recipe = {"model": {"path": tiny_folder}, "prompts": ["a"], "reward": {"kind": "./my rewards.py:Redness"}}
    (own / "mine.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return own


def test_what_names_a_file() -> None:
    assert [is_file(t) for t in ("a:B", "a.b:C", "a.py:B", "./a.py:B", "/x/a.py:B", "brightness")] == [
        *(False, False, True, True, True, False)
    ]
    assert split("/x/a:b.py:C") == ("/x/a:b.py", "C")


def test_a_file_is_looked_up_beside_the_recipe_and_then_here(folder: Path) -> None:
    here = Path.cwd()
    assert absolute("./my rewards.py:X", folder) == f"{folder}/my rewards.py:X"
    assert absolute("other.py:X", folder) == f"{here}/other.py:X"
    assert absolute("/x/a.py:X", folder) == "/x/a.py:X"
    assert absolute("a.b:X", folder) == "a.b:X" and absolute("brightness", folder) == "brightness"


def test_the_frozen_configuration_names_the_file_wherever_it_is_read(folder: Path) -> None:
    recipe = load_recipe(str(folder / "mine.yaml"))
    target = f"{folder}/my rewards.py:Redness"
    assert recipe.config.reward[0].kind == target and recipe.config.reward[0].label == "Redness"
    assert from_yaml(recipe.yaml, "run/config.yaml").config == recipe.config
    check(recipe.config)
    assert announced(recipe.config) == [f"imports {target} (reward.kind)"]


def test_a_file_is_loaded_once_and_finds_what_lies_beside_it(folder: Path) -> None:
    target = f"{folder}/my rewards.py:Redness"
    assert load(target) is load(target)
    reward = build(target, {"times": 2.0})
    torch.testing.assert_close(reward(IMAGES, [""] * 3), 2 * IMAGES[:, 0].mean((1, 2)) + 0.5)
    assert pickle.loads(pickle.dumps(reward)) == reward
    code = f"from dav_ray.registry import load; print(load({target!r})(3.0).times)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd="/") == "3.0\n"


def test_functions_are_rewards_features_and_modules(folder: Path) -> None:
    file = f"{folder}/my rewards.py"
    plain, smooth = build(f"{file}:redness", {"times": 2.0}), build(f"{file}:smooth", {})
    assert (plain.differentiable, smooth.differentiable) == (False, True)
    torch.testing.assert_close(plain(IMAGES, [""] * 3), 2 * IMAGES[:, 0].mean((1, 2)))
    _, grads = local_scorer([("smooth", 1.0, smooth)]).score_and_grad(IMAGES, [""] * 3)
    torch.testing.assert_close(grads, torch.full_like(IMAGES, 1 / 48))
    product = build("product", {"rewards": [{"kind": f"{file}:redness", "args": {"times": 2.0}}]})
    torch.testing.assert_close(product(IMAGES, [""] * 3).float(), 2 * IMAGES[:, 0].mean((1, 2)))
    assert features(f"{file}:linear") is load(f"{file}:linear")
    assert load(f"{file}:linear")(3).in_features == 3


def test_mistakes_are_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def line(kind: str) -> str:
        with pytest.raises(UserError) as caught:
            check(load_recipe(str(folder / "mine.yaml"), [f"reward.kind={kind}"]).config)
        (found,) = caught.value.lines
        return found

    (folder / "broken.py").write_text("1 / 0\n")
    rule = "allowed: module.path:Name or path/to/file.py:Name"
    assert line("nowhere.py:X") == f"reward.kind = nowhere.py:X: no such file; {rule}"
    assert line("broken.py:X").startswith(f"reward.kind = {folder}/broken.py:X: can't import {folder}/broken.py (Zero")
    assert line("my rewards.py:Rednes").endswith("has no Rednes; did you mean Redness?")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    check(load_recipe(str(folder / "mine.yaml")).config)  # lies elsewhere
    monkeypatch.chdir(folder)
    assert "lies in a job's working directory, which is a temporary copy" in line("my rewards.py:Redness")


# ---- names that installed packages register ----

GROUP = "dav_ray.rewards"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


def test_another_package_registers_a_reward(site: Path, folder: Path) -> None:
    greens = OWN.replace("Redness", "Greenness").replace("from beside", "from beside_greens")
    install(site, "more-rewards", {GROUP: {"greenness": "greens:Greenness"}}, greens=greens)
    (site / "beside_greens.py").write_text("SHIFT = 0.25\n")

    assert "greenness" in REWARDS and [*REWARDS][-1] == "greenness"
    assert REWARDS["greenness"] == Entry("greens:Greenness", distribution="more-rewards 1.2")
    recipe = load_recipe(str(folder / "mine.yaml"), ["reward.0.kind=greenness", "reward.0.args={times: 2}"])
    assert announced(recipe.config) == [f"imports greens:Greenness from {site}/greens.py (reward.kind)"]
    check(recipe.config)
    assert torch.allclose(build("greenness", {"times": 2.0})(IMAGES, ["a"] * 3), 2 * IMAGES[:, 0].mean((1, 2)) + 0.25)
    with pytest.raises(UserError, match=r"reward.args = .*: greenness: .*; allowed: times"):
        check(load_recipe(str(folder / "mine.yaml"), ["reward.0.kind=greenness", "reward.0.args={time: 2}"]).config)
    with pytest.raises(UserError, match=r"^reward.kind = greeness: unknown reward; did you mean greenness\?"):
        check(load_recipe(str(folder / "mine.yaml"), ["reward.0.kind=greeness"]).config)


def test_names_that_can_not_be_used_are_one_line_each(site: Path, folder: Path) -> None:
    install(
        site,
        "broken",
        {
            GROUP: {
                "twice": "one:A",
                "module": "one",
                "words": "no such:thing",
                "gone": "nowhere:A",
                "brightness": "one:A",
            }
        },
    )
    install(site, "other", {GROUP: {"twice": "two:B"}}, version="3.0")

    def mistake(kind: str) -> str:
        with pytest.raises(UserError) as caught:
            check(load_recipe(str(folder / "mine.yaml"), [f"reward.0.kind={kind}"]).config)
        (line,) = caught.value.lines
        return line

    assert mistake("twice") == (
        "reward.kind = twice: is registered by broken 1.2 and by other 3.0; allowed: one:A or two:B"
    )
    assert mistake("module").startswith("reward.kind = module: broken 1.2 registers the module one, and names nothing")
    assert mistake("words") == ("reward.kind = words: broken 1.2 registers no such:thing, which is no module.path:Name")
    assert mistake("gone").startswith("reward.kind = gone: can't import nowhere (ModuleNotFoundError")
    assert REWARDS.target("brightness") == "dav_ray.rewards.colour:Brightness"
    faults = {name: entry.fault for name, entry in REWARDS.entries() if entry.distribution and entry.fault}
    assert [*faults] == ["brightness", "module", "twice", "words"]
    assert faults["brightness"] == "is built in: broken 1.2 can't replace it; allowed: one:A"


def test_the_table_of_a_registry_is_read_without_third_parties() -> None:
    """A reward's own environment finds built-in rewards with the standard library alone."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'pydantic', 'ray')))\n"
        "import dav_ray.registry\n"
        "from dav_ray.rewards.registry import REWARDS\n"
        "print(REWARDS.target('gc_content'), REWARDS.target('ehrlich'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["dav_ray.rewards.sequence:GcContent", "dav_ray.rewards.ehrlich:Ehrlich"]
