"""`search.alpha` as a number and in standard deviations."""

from __future__ import annotations

import pytest
import torch

from dav_ray.config.build import strategy
from dav_ray.config.keys.table import table
from dav_ray.config.plan import plan
from dav_ray.config.recipe.differences import differing_keys
from dav_ray.config.recipe.load import from_yaml, load
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.errors import UserError
from dav_ray.search.kinds import unscored
from dav_ray.search.options import Search
from dav_ray.search.weighting.temperature import number
from dav_ray.testing.base import scorer
from dav_ray.testing.gaussian import LinearGaussian, Quadratic


@pytest.mark.parametrize("typed", ["0.1 sd", "0.1sd", " 1e-1  sd ", ".1 sd", "0.10 sd"])
def test_one_way_of_writing(typed: str) -> None:
    assert Search.model_validate({"alpha": typed}).alpha == "0.1 sd"
    assert load("digits", [f"search.alpha='{typed}'"]).config.search.alpha == "0.1 sd"
    assert load("digits", ["search.alpha=0.1 sd"]).config.search.alpha == "0.1 sd"


@pytest.mark.parametrize(
    ("typed", "what"),
    [
        ("0.1 std", "wrong type"),
        ("sd", "wrong type"),
        ("0.1", None),
        ("-1 sd", "out of range"),
        ("0 sd", "out of range"),
        ("inf sd", "out of range"),
        ("nan sd", "out of range"),
        ("0.1 sd sd", "wrong type"),
        ("1 000 sd", "wrong type"),
        ("true", "wrong type"),
    ],
)
def test_mistakes_are_one_line_that_names_both_units(typed: str, what: str | None) -> None:
    if what is None:
        assert load("digits", [f"search.alpha='{typed}'"]).config.search.alpha == 0.1
        return
    with pytest.raises(UserError) as raised:
        load("digits", [f"search.alpha={typed}"])
    line = f'search.alpha = {typed}: {what}; allowed: a number > 0, or one in sd, for instance "0.1 sd"'
    assert raised.value.lines == [line]


def test_one_sample_has_no_standard_deviation() -> None:
    with pytest.raises(UserError) as raised:
        load("digits", ["search.alpha=1 sd", "evaluate.samples=1"])
    assert raised.value.lines == [
        "evaluate.samples = 1: one sample has no standard deviation, and search.alpha = 1 sd is measured on them; "
        "allowed: at least 2, or a number as search.alpha"
    ]
    assert load("digits", ["evaluate.samples=1"]).config.evaluate.samples == 1


def test_a_stored_recipe_keeps_the_unit_and_is_the_same_run() -> None:
    recipe = load("digits", ["search.alpha=0.1sd"])
    stored = from_yaml(recipe.yaml, "run/config.yaml")
    assert stored.config == recipe.config and stored.config.identity() == recipe.config.identity()
    other = load("digits", ["search.alpha=0.2 sd"])
    (line,) = differing_keys(recipe.yaml, other.yaml)
    assert line.startswith("search.alpha: was 0.1 sd, now 0.2 sd; fixed: ")
    assert differing_keys(recipe.yaml, load("digits", ["search.alpha=0.10 sd"]).yaml) == []
    assert recipe.config.identity() != load("digits").config.identity()


def test_numbers_are_what_they_were() -> None:
    """The identity of the shipped recipe as 0.1.0 had it, whatever way alpha is typed."""
    was = "4aadb9cba7298363498bfc00cd938c46d6a679e7b472061c23c81c3892f11f6f"
    assert load("digits").config.former_identity() == was
    assert load("digits", ["search.alpha=2e-3"]).config.former_identity() == was
    assert "\n  alpha: 0.002\n" in load("digits").yaml
    (described,) = table("search.alpha")
    assert described.default == 0.005 and "0.1 sd" in described.allowed + described.meaning


def test_the_number_is_asked_for_in_one_place() -> None:
    assert number(0.3) == number(0.3, 7.0) == 0.3
    assert number("0.1 sd", 7.0) == 7.0
    with pytest.raises(ValueError, match="0.1 sd: is no number before round 0"):
        number("0.1 sd")
    with pytest.raises(ValueError, match="before round 0"):
        strategy(Search(alpha="0.1 sd"))


@pytest.mark.parametrize("kind", ["dav", "smc", "svdd", "refine", "none"])
def test_every_search_takes_the_number(kind: str) -> None:
    in_sd = strategy(Search.model_validate({"kind": kind, "alpha": "0.1 sd"}), 0.25)
    plain = strategy(Search.model_validate({"kind": kind, "alpha": 0.25}))
    assert vars(in_sd) == vars(plain)


@pytest.mark.parametrize("kind", ["dav", "smc", "svdd", "refine"])
def test_a_reward_in_other_units_gives_the_same_trajectories(kind: str) -> None:
    """alpha = 0.1 sd of r and of 1000 r: the same choices, hence the same paths."""
    search, diffusion = Search.model_validate({"kind": kind, "alpha": "0.1 sd", "candidates": 4}), LinearGaussian(6)
    reward = Quadratic(centre=(1.0, -0.5), matrix=((2.0, 0.8), (0.8, 0.6)), offset=0.5)
    names = ["0.3"] * 6 + ["-1"] * 6

    def paths(unit: float) -> tuple[float, torch.Tensor, torch.Tensor]:
        def scaled(samples: torch.Tensor, conditions: object) -> torch.Tensor:
            return unit * reward(samples.double(), ()).double()

        plain = strategy(Search(kind="none"))(diffusion, scorer(scaled), names, KeyedNoise(0, 0, range(12)))
        alpha = 0.1 * float(plain.reward.std(correction=0))
        found = strategy(search, alpha)(diffusion, scorer(scaled), names, KeyedNoise(0, 1, range(12)))
        return alpha, found.states, found.ess

    (alpha, states, ess), (other_alpha, other_states, other_ess) = paths(1.0), paths(1000.0)
    assert other_alpha == pytest.approx(1000 * alpha)
    assert torch.equal(states, other_states)
    torch.testing.assert_close(ess, other_ess)
    assert float(ess.mean()) < 11  # the reward did choose


def test_the_bound_of_negligible_steps_is_in_the_same_unit() -> None:
    """spread / alpha has no unit: the steps that are left out are known before anything is measured."""
    words = {"negligible": 0.3, "steps": 20}
    in_sd = Search.model_validate({**words, "alpha": "0.5 sd", "spread": 2.0})
    plain = Search.model_validate({**words, "alpha": 0.05, "spread": 0.2})
    assert unscored(in_sd) == unscored(plain) != frozenset()
    first, second = (
        plan(load("digits", [f"search={{alpha: {alpha}, spread: {spread}, negligible: 0.3, steps: 20}}"]).config)
        for alpha, spread in (("0.5 sd", 2.0), (0.05, 0.2))
    )
    assert first == second and first.evaluations < plan(load("digits", ["search={steps: 20}"]).config).evaluations
