"""The how-tos for a search, an objective and a reward of one's own: their files are taken from the pages, and named in
every way."""

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
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.mstep.fit import Fitter
from dav_ray.mstep.objective import Rows
from dav_ray.mstep.options import MStep
from dav_ray.mstep.registry import build as build_objective
from dav_ray.rewards.registry import build
from dav_ray.search.options import Search
from dav_ray.testing import enumerable
from dav_ray.testing.base import scorer
from dav_ray.testing.gaussian import LinearGaussian
from dav_ray.types import StepLoss, Transitions
from tests.support.distributions import install
from tests.support.markdown import all_blocks, files_of
from tests.support.streams import started
from tests.support.tilted_law import samples_of_the_tilted_law

SEARCH, MSTEP, REWARDS = (f"dav_ray/{folder}/README.md" for folder in ("search", "mstep", "rewards"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the reader stands, with the files of the pages; a package of theirs registers the names that are shown."""
    files = files_of(SEARCH) | files_of(MSTEP) | files_of(REWARDS)
    points: dict[str, Any] = {}
    for block in all_blocks("toml"):
        points |= tomllib.loads(block.text)["project"]["entry-points"]
    assert points == {
        "dav_ray.objectives": {"late_steps": "my_objective:LateSteps"},
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


def test_the_search_starts_no_stream_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it draws and what it chooses are independent."""
    keys, diffusion = started(monkeypatch), enumerable.model()
    config = Search.model_validate({"kind": "my_search:OneOfMany", "candidates": 3})
    strategy(config)(diffusion, scorer(enumerable.Scores()), [""] * 2, KeyedNoise(0, 1, range(2)))
    assert len(keys) == len(set(keys)) == 2 * 3 * (diffusion.steps + 1) + 2


@pytest.mark.parametrize("kind", ["my_objective:LateSteps", "./my_objective.py:LateSteps", "late_steps"])
def test_a_recipe_names_the_objective(folder: Path, kind: str) -> None:
    config = configured(folder, mstep={"objective": kind, "args": {"power": 2.0}})
    objective = build_objective(config.mstep.objective, config.mstep.args)
    loss = StepLoss(torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0]))
    batch = Transitions(torch.zeros(2), torch.zeros(2), torch.tensor([1, 2]), ["", ""])
    weights = torch.tensor([1.0, 3.0], dtype=torch.float64)
    assert float(objective(loss, weights, 0.1, batch)) == pytest.approx(1 * (1 + 1) + 3 * (2 + 2) / 4)


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_steps_that_share_nothing_are_fitted_alike(folder: Path, power: float) -> None:
    """As the page says: the minimum is that of DAV's own objective, here in closed form."""
    toy, num = LinearGaussian(3, 2), 6
    states = torch.randn((num, 4, 2), generator=torch.Generator().manual_seed(0))
    data = Rows(states, None, ("0.3",) * num, torch.ones(num, dtype=torch.float64), torch.ones(num, dtype=torch.bool))
    expected = torch.zeros(4, 2)
    for t in (1, 2, 3):
        batch = data.transitions(torch.arange(num), torch.full((num,), t))
        with torch.no_grad():
            mean = toy.predict(batch.x_t, t, batch.conditions, reference=True).kernel.mean
        expected[t] = (batch.x_prev - mean).mean(0) / (1 + 0.5)
    own = {"objective": "my_objective:LateSteps", "args": {"power": power}, "kl": 0.5}
    options = {"learning_rate": 0.02, "epochs": 400, "max_grad_norm": 1e9, "batch_size": 1000}
    Fitter(toy, MStep.model_validate({**own, **options}), 7).fit(1, [data])
    torch.testing.assert_close(toy.shift.detach(), expected, rtol=0, atol=0.01)
    assert expected.abs().max() > 0.05


@pytest.mark.parametrize("kind", ["my_rewards:Redness", "./my_rewards.py:Redness", "redness"])
def test_a_recipe_names_the_reward(folder: Path, kind: str) -> None:
    config = configured(folder, reward={"kind": kind, "args": {"strength": 2.0}}, search={"gradient": True})
    images = torch.zeros(2, 3, 4, 4)
    images[1, 0] = 0.5
    assert build(config.reward[0].kind, config.reward[0].args)(images, ["a", "b"]).tolist() == [0.0, 1.0]
