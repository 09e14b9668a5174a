"""An objective in one new file: named by its module, by its file, or by an entry point of another package."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from dav_ray.cli.app import app
from dav_ray.config.checks.preflight import check
from dav_ray.config.checks.user_code import announced
from dav_ray.config.keys.json_schema import recipe_schema
from dav_ray.config.recipe.load import from_yaml, load
from dav_ray.errors import UserError
from dav_ray.mstep.fit import Fitter
from dav_ray.mstep.objective import Rows, weighted_sum
from dav_ray.mstep.options import MStep
from dav_ray.mstep.registry import OBJECTIVES, build
from dav_ray.testing.gaussian import LinearGaussian
from tests.support.distributions import install

OWN = '''
class Scaled:
    """The paper's, so many times as large, and larger at large t."""

    def __init__(self, times=1.0):
        self.times = times

    def __call__(self, loss, weights, kl, batch):
        each = weights.to(loss.nll) * batch.t.to(loss.nll) * (loss.nll + kl * loss.kl)
        return self.times * each.sum()


def nothing(loss, weights, kl, batch, times=1.0):
    """Learns nothing."""
    return 0.0 * times * loss.nll.sum()


def short(loss, weights):
    return loss.nll.sum()


class Silent:
    pass


class Long:
    def __call__(self, loss, weights, kl, batch, more):
        return loss.nll.sum()
'''
T, D, N = 4, 2, 5


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with an objective beside it, a folder of installed packages, and another working directory."""
    site, own, here = tmp_path / "site", tmp_path / "own", tmp_path / "here"
    for place in (own, here):
        place.mkdir()
    points = {"dav_ray.objectives": {"scaled": "registered_objective:Scaled"}}
    install(site, "more-objectives", points, registered_objective=OWN)
    (own / "own_objective.py").write_text(OWN)
    recipe = {
        "model": {"kind": "masked", "path": "shipped:dna"},
        "reward": {"kind": "gc_content"},
        "mstep": {"objective": "own_objective:Scaled"},
        "roles": {"train": {"replicas": 1}},
    }
    (own / "mine.yaml").write_text(yaml.safe_dump(recipe))
    for module in ("own_objective", "registered_objective"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.syspath_prepend(site)
    monkeypatch.chdir(here)
    return own


def rows() -> Rows:
    draws = torch.Generator().manual_seed(0)
    weights = torch.rand(N, generator=draws, dtype=torch.float64) + 0.5
    states = torch.randn((N, T + 1, D), generator=draws)
    return Rows(states, None, ("0.3",) * N, weights / weights.mean(), torch.ones(N, dtype=torch.bool))


@pytest.mark.parametrize("by", ["own_objective:Scaled", "{folder}/own_objective.py:Scaled", "scaled"])
def test_its_gradient_is_what_the_optimizer_sees(folder: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    """Whatever the micro-batch; nll and KL are reported as they are."""
    monkeypatch.syspath_prepend(folder)
    toy, data, expected, norms = LinearGaussian(T, D).shifted(0.5), rows(), torch.zeros(()), []
    for t in range(1, T + 1):
        loss = toy.step_loss(data.transitions(torch.arange(N), torch.full((N,), t)), reference=True)
        expected = expected + 3.0 * t * (data.weights * (loss.nll + 0.3 * loss.kl)).mean()
    (gradient,) = torch.autograd.grad(expected, toy.shift)
    options = {"kl": 0.3, "batch_size": 1000, "max_grad_norm": 1e9}
    for micro_batch in (100, 3):
        own = {"objective": by.format(folder=folder), "args": {"times": 3.0}, "micro_batch": micro_batch}
        metrics = Fitter(LinearGaussian(T, D).shifted(0.5), MStep(**{**options, **own}), 7).fit(1, [data])
        norms.append(metrics["mstep/grad_norm"])
    plain = Fitter(LinearGaussian(T, D).shifted(0.5), MStep(**options), 7).fit(1, [data])

    assert norms == pytest.approx([float(gradient.norm())] * 2, rel=1e-5)
    assert plain["mstep/grad_norm"] < 0.5 * norms[0]
    assert (metrics["mstep/nll"], metrics["mstep/kl"]) == pytest.approx((plain["mstep/nll"], plain["mstep/kl"]))


@pytest.mark.parametrize("name", ["own_objective:Scaled", "./own_objective.py:Scaled", "scaled"])
def test_a_recipe_names_it(folder: Path, name: str) -> None:
    recipe = load(str(folder / "mine.yaml"), [f"mstep.objective={name}", "mstep.args={times: 2}"])
    again = from_yaml(recipe.yaml, "runs/a/config.yaml").config

    (line,) = announced(recipe.config)
    assert line.startswith("imports ") and line.endswith(" (mstep.objective)") and str(folder.parent) in line
    check(recipe.config)
    assert again == recipe.config and again.identity() == recipe.config.identity()
    assert vars(build(recipe.config.mstep.objective, recipe.config.mstep.args)) == {"times": 2}


def test_the_papers_is_the_default_and_no_part_of_an_identity(folder: Path) -> None:
    default = load(str(folder / "mine.yaml"), ["mstep.objective=weighted_nll"]).config
    assert MStep().objective == "weighted_nll" and OBJECTIVES.load("weighted_nll") is weighted_sum
    assert "objective" not in default.mstep.model_dump(exclude_defaults=True)
    assert "args" not in default.mstep.model_dump() and announced(default) == []
    assert default.identity() != load(str(folder / "mine.yaml")).config.identity()


@pytest.mark.parametrize(
    "overrides, line",
    [
        (["mstep.objective=weighted"], "mstep.objective = weighted: unknown value; allowed: weighted_nll, or mod"),
        (["mstep.objective=3"], "mstep.objective = 3: unknown value; allowed: weighted_nll, or module.path:Name"),
        (
            ["mstep.objective=weighted_nll", "mstep.args={a: 1}"],
            "mstep.args = {'a': 1}: mstep.objective = weighted_nll takes no arguments; allowed: {}, or those of an",
        ),
        (
            ["mstep.args={time: 2}"],
            'mstep.args = {"time": 2}: own_objective:Scaled: got an unexpected keyword argument \'time\'; allowed: t',
        ),
        (
            ["mstep.objective=own_objective:nothing", "mstep.args={kl: 2}"],
            'mstep.args = {"kl": 2}: own_objective:nothing: multiple values for argument \'kl\'; allowed: times',
        ),
        (
            ["mstep.objective=own_objective:short"],
            "mstep.objective = own_objective:short: can't be called with (loss, weights, kl, batch); allowed: a class",
        ),
        (["mstep.objective=own_objective:Long"], "mstep.objective = own_objective:Long: can't be called with (los"),
        (["mstep.objective=own_objective:Silent"], "mstep.objective = own_objective:Silent: can't be called with ("),
        (["mstep.objective=own_objective:Scald"], "mstep.objective = own_objective:Scald: own_objective has no Scald"),
        (["mstep.objective=nowhere:A"], "mstep.objective = nowhere:A: can't import nowhere (ModuleNotFoundError"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_each(folder: Path, overrides: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        check(load(str(folder / "mine.yaml"), overrides).config)
    (found,) = caught.value.lines
    assert found.startswith(line)


def test_nothing_of_it_is_imported_before_it_is_announced(folder: Path) -> None:
    (folder / "own_objective.py").write_text("raise RuntimeError('imported')")
    config = load(str(folder / "mine.yaml")).config
    assert announced(config) == [f"imports own_objective:Scaled from {folder}/own_objective.py (mstep.objective)"]
    with pytest.raises(
        UserError, match=r"^mstep.objective = .*: can't import own_objective \(RuntimeError: imported\)"
    ):
        check(config)


def test_it_is_listed_and_editors_know_it(folder: Path) -> None:
    assert [*OBJECTIVES] == ["weighted_nll", "scaled"]
    found = json.loads(CliRunner().invoke(app, ["list", "objectives", "--json"]).output)
    about = "The paper's, so many times as large, and larger at large t."
    assert found[-1] == {"name": "scaled", "about": about, "package": "more-objectives 1.2", "fault": ""}
    names = recipe_schema()["$defs"]["MStep"]["properties"]["objective"]["anyOf"][0]
    assert ["weighted_nll", "scaled"] in [names.get("enum"), names.get("anyOf", [{}])[0].get("enum")]


def test_a_function_gets_its_arguments_at_every_call(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    toy = LinearGaussian(T, D).shifted(0.5)
    before = toy.shift.detach().clone()
    own = MStep(objective="own_objective:nothing", args={"times": 2.0}, kl=0.3, learning_rate=0.1)
    metrics = Fitter(toy, own, 7).fit(1, [rows()])
    assert metrics["mstep/grad_norm"] == 0 and torch.equal(toy.shift, before)
