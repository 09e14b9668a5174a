"""The how-tos for a search and a reward of one's own: their files are taken from the pages, and named in every way."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dav_ray.config.build import strategy
from dav_ray.config.checks.preflight import check
from dav_ray.config.plan import plan
from dav_ray.config.recipe.load import load
from dav_ray.config.schema import Config
from dav_ray.rewards.registry import build
from tests.support.distributions import install
from tests.support.markdown import all_blocks, files_of
from tests.support.tilted_law import samples_of_the_tilted_law

SEARCH, REWARDS = "dav_ray/search/README.md", "dav_ray/rewards/README.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the reader stands, with the files of both pages; a package of theirs registers the names that are shown."""
    files = files_of(SEARCH) | files_of(REWARDS)
    points: dict[str, Any] = {}
    for block in all_blocks("toml"):
        points |= tomllib.loads(block.text)["project"]["entry-points"]
    assert points == {
        "dav_ray.searches": {"one_of_many": "my_search:OneOfMany"},
        "dav_ray.rewards": {"redness": "my_rewards:Redness"},
        "dav_ray.models": {"pixels": "pixels:Pixels"},
    }
    install(tmp_path / "site", "of-the-reader", points)
    for file, written in files.items():
        (tmp_path / file).write_text(written)
        monkeypatch.delitem(sys.modules, Path(file).stem, raising=False)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def configured(folder: Path, **sections: Any) -> Config:
    whole = {"model": {"path": "shipped:digits"}, "prompts": ["one"], "reward": {"kind": "brightness"}, **sections}
    (folder / "mine.yaml").write_text(yaml.safe_dump(whole))
    config = load(str(folder / "mine.yaml")).config
    check(config)
    return config


@pytest.mark.parametrize("kind", ["my_search:OneOfMany", "./my_search.py:OneOfMany", "one_of_many"])
def test_a_recipe_names_the_search(folder: Path, kind: str) -> None:
    config = configured(folder, search={"kind": kind, "candidates": 8, "steps": 10, "args": {"boost": 2.0}})
    assert (plan(config).evaluations, plan(config).reward_calls) == (80, 8)
    assert vars(strategy(config.search)) == {"candidates": 8, "alpha": 0.005, "boost": 2.0}


def test_the_search_samples_the_tilted_law(folder: Path) -> None:
    """As the page says: E[W] = Z, and by their weights the samples follow p exp(r / alpha) / Z, both enumerated."""
    samples_of_the_tilted_law("my_search:OneOfMany")


@pytest.mark.parametrize("kind", ["my_rewards:Redness", "./my_rewards.py:Redness", "redness"])
def test_a_recipe_names_the_reward(folder: Path, kind: str) -> None:
    config = configured(folder, reward={"kind": kind, "args": {"strength": 2.0}}, search={"gradient": True})
    images = torch.zeros(2, 3, 4, 4)
    images[1, 0] = 0.5
    assert build(config.reward[0].kind, config.reward[0].args)(images, ["a", "b"]).tolist() == [0.0, 1.0]
