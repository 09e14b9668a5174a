"""A search strategy in one new file: named by its module, by its file, or by an entry point of another package."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from dav_ray.cli.app import app
from dav_ray.config.build import strategy
from dav_ray.config.checks.preflight import check
from dav_ray.config.checks.user_code import announced
from dav_ray.config.plan import plan
from dav_ray.config.recipe.load import from_yaml, load
from dav_ray.errors import UserError
from dav_ray.search.facts import Facts, Spent
from dav_ray.search.kinds import SEARCHES
from dav_ray.search.options import Search
from dav_ray.testing.enumerable import frequencies
from tests.support.distributions import install
from tests.support.tilted_law import samples_of_the_tilted_law

OWN = '''
import torch

from dav_ray.diffusion.sampling import ancestral
from dav_ray.search.facts import Facts, Spent
from dav_ray.search.weighting.weights import choose, logmeanexp
from dav_ray.types import Cost, Trajectories


class OneOfMany:
    """Draws whole samples, and keeps one of them by exp(r / alpha)."""

    class facts(Facts):
        uses = frozenset({"anchor"})

        @property
        def weightless(self):
            return "" if self.search.beta == 0 else "follows the current model alone"

        def spent(self, *, warm=False):
            m = self.search.candidates
            return Spent(m * self.search.steps, reward=m)

    def __init__(self, candidates, alpha, boost=1.0):
        self.candidates, self.alpha, self.boost = candidates, alpha, boost

    @torch.no_grad()
    def __call__(self, diffusion, scorer, conditions, noise):
        before, batch, m = diffusion.cost, len(conditions), self.candidates
        repeated = [c for c in conditions for _ in range(m)]
        states = ancestral(diffusion, repeated, noise.copies(m))
        samples = diffusion.decode(states[-1], repeated)
        total, each = scorer.score_each(samples, repeated)
        log_w = self.boost * total.reshape(batch, m) / self.alpha
        kept = torch.arange(batch) * m + choose(log_w, noise.at(diffusion.steps + 1).uniform(()))
        cost = diffusion.cost - before + Cost(reward=len(repeated))
        ones = torch.ones(batch, dtype=torch.float64)
        return Trajectories(
            states[:, kept], None, samples[kept], total[kept], logmeanexp(log_w), ones, cost, each=each[kept]
        )
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe, a folder of installed packages, and the working directory."""
    site, own, here = tmp_path / "site", tmp_path / "own", tmp_path / "here"
    for place in (own, here):
        place.mkdir()
    install(
        site,
        "more-searches",
        {"dav_ray.searches": {"one_of_many": "registered_search:OneOfMany"}},
        registered_search=OWN,
    )
    (own / "own_search.py").write_text(OWN)
    recipe = {
        "model": {"kind": "masked", "path": "shipped:dna"},
        "reward": {"kind": "gc_content"},
        "search": {"kind": "own_search:OneOfMany", "candidates": 3, "steps": 8},
        "roles": {"train": {"replicas": 1}},
    }
    (own / "mine.yaml").write_text(yaml.safe_dump(recipe))
    for module in ("own_search", "registered_search"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.syspath_prepend(site)
    monkeypatch.chdir(here)
    return own


def named(folder: Path) -> dict[str, str]:
    return {
        "module": "own_search:OneOfMany",
        "file": f"{folder}/own_search.py:OneOfMany",
        "entry point": "one_of_many",
    }


@pytest.mark.parametrize("by", ["module", "file", "entry point"])
def test_it_samples_the_tilted_law(folder: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    """E[W] = Z, and weighted samples follow p exp(r / alpha) / Z, both enumerated."""
    monkeypatch.syspath_prepend(folder)
    sample, plain = samples_of_the_tilted_law(named(folder)[by])
    assert 0.5 * float((frequencies(sample, torch.ones(len(sample))) - plain).abs().sum()) > 0.1


@pytest.mark.parametrize("by", ["module", "file", "entry point"])
def test_a_recipe_names_it(folder: Path, by: str) -> None:
    kind = {**named(folder), "file": "./own_search.py:OneOfMany"}[by]
    recipe = load(str(folder / "mine.yaml"), [f"search.kind={kind}", "search.args={boost: 2}"])
    again = from_yaml(recipe.yaml, "runs/a/config.yaml").config

    (line,) = announced(recipe.config)
    assert line.startswith("imports ") and line.endswith(" (search.kind)") and str(folder.parent) in line
    check(recipe.config)
    assert again == recipe.config and again.identity() == recipe.config.identity()
    assert plan(recipe.config).evaluations == 24 and plan(recipe.config).reward_calls == 3
    assert vars(strategy(recipe.config.search)) == {"candidates": 3, "alpha": 0.005, "boost": 2}


@pytest.mark.parametrize(
    "overrides, line",
    [
        (["search.args={bost: 2}"], "search.args.bost: no such argument; did you mean boost? allowed: boost"),
        (["search.args={alpha: 2}"], "search.args.alpha: is a key of search; allowed: search.alpha"),
        (["search.eta=0"], "search.eta = 0: a search needs a stochastic sampler; allowed: 0 < eta <= 1"),
        (["search.gradient=true"], "search.gradient = true: own_search:OneOfMany uses no gradient; allowed: false, or"),
        (
            ["search.particles=3"],
            "search.particles = 3: search.kind = own_search:OneOfMany has no use for it; allowed: 1",
        ),
        (
            ["search.anchor=pretrained", "mstep.weights=trajectory"],
            "mstep.weights = trajectory: own_search:OneOfMany follows the current model alone and has no weights; "
            "allowed: none",
        ),
        (["mstep.candidates=all"], "mstep.candidates = all: own_search:OneOfMany keeps no candidates; allowed: winner"),
        (["search.kind=own_search:OneOfMeny"], "search.kind = own_search:OneOfMeny: own_search has no OneOfMeny"),
        (["search.kind=own_search:choose"], "search.kind = own_search:choose: is no search; allowed: a"),
        (["search.kind=nowhere:A"], "search.kind = nowhere:A: can't import nowhere (ModuleNotFoundError"),
        (["search.kind=best_of_n", "search.args={a: 1}"], "search.args = {'a': 1}: search.kind = best_of_n has"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_each(folder: Path, overrides: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        check(load(str(folder / "mine.yaml"), overrides).config)
    (found,) = caught.value.lines
    assert found.startswith(line)


def test_nothing_of_it_is_imported_before_it_is_announced(folder: Path) -> None:
    (folder / "own_search.py").write_text("raise RuntimeError('imported')")
    config = load(str(folder / "mine.yaml")).config
    assert announced(config) == [f"imports own_search:OneOfMany from {folder}/own_search.py (search.kind)"]
    with pytest.raises(UserError, match=r"^search.kind = .*: can't import own_search \(RuntimeError: imported\)"):
        check(config)


def test_it_is_listed(folder: Path) -> None:
    assert [*SEARCHES] == ["dav", "smc", "svdd", "refine", "best_of_n", "none", "one_of_many"]
    done = CliRunner().invoke(app, ["list", "searches"])
    about = "Draws whole samples, and keeps one of them by exp(r / alpha)."
    assert done.output.splitlines()[-1] == f"one_of_many  {about} (more-searches 1.2)"
    found = json.loads(CliRunner().invoke(app, ["list", "searches", "--json"]).output)
    assert found[-1] == {"name": "one_of_many", "about": about, "package": "more-searches 1.2", "fault": ""}


def test_a_search_that_says_nothing_of_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is counted as if all its states were evaluated and scored at every step, and its weights are used."""
    (tmp_path / "silent_search.py").write_text("class Silent:\n    def __call__(self, *given): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    facts = Search(kind="silent_search:Silent", candidates=3, steps=5).facts
    assert type(facts) is Facts and facts.weightless == "" and not facts.starts
    assert facts.spent() == Spent(15, reward=15)
