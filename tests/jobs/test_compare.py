"""The tables of the comparisons: a row per method in the page's words, the pretrained model first."""

from __future__ import annotations

from typing import Any

import pytest

from dav_ray.config.recipe.load import load
from dav_ray.search.kinds import counts
from jobs.compare import digits, dna
from jobs.compare.page import PAGE


def outcome(reward: float) -> digits.Outcome:
    """A run that began at reward -1 with a standard deviation of 0.04."""

    def evaluated(reward: float, share: float) -> dict[str, Any]:
        names = ("heldout/legibility", "diversity/features", "diversity/within_prompt")
        row = {"evaluate/reward_mean": reward, "evaluate/reward_std": 0.04, "heldout/kl": 20.0 * (1 - share)}
        return row | dict.fromkeys(names, share)

    return digits.Outcome(
        evaluated(-1.0, 1.0), evaluated(reward, 0.5), {"reward/mean": -0.9, "search/nfe_per_sample": 77}
    )


def test_digits_are_the_mean_over_seeds_beside_the_pretrained_model() -> None:
    table = digits.render({"best of 4": [outcome(-0.98)], "DAV with KL": [outcome(-0.96), outcome(-0.92)]})
    same = ("50.0%", "50%", "50%", "10.0", "+2.50", "77")
    assert table.rows == (
        ("pretrained", "-1.0000", "+0.00", "100.0%", "100%", "100%", "0.0", "", ""),
        ("best of 4", "-0.9800", "+0.50", *same),
        ("DAV with KL (the recipe)", "-0.9400", "+1.50", *same),
    )


def test_dna_leaves_out_what_a_row_does_not_have() -> None:
    whole = dict.fromkeys(dna.COLUMNS, 1.0)
    table = dna.render({"pretrained": [{"KL": 0.0}], "DAV with KL": [whole, dict.fromkeys(dna.COLUMNS, 2.0)]})
    assert table.rows[0] == ("pretrained", *[""] * 6, "0.0", "")
    assert table.rows[1] == ("DAV with KL (the recipe)", "1.50", "1.50", "+1.50", "1.5", "150%", "1.5", "1.5", "2")


def test_the_page_has_the_columns_and_methods_of_the_programs() -> None:
    stored = {each.table.title: each.table for each in PAGE.stored()}
    assert stored["DNA"].header == ("model", *dna.COLUMNS)
    for compared in digits.RECIPES.values():
        if compared.title not in stored:
            continue
        table = stored[compared.title]
        assert table.header == ("model", *digits.COLUMNS)
        pretrained, *others = digits.render({name: [outcome(-0.9)] for name in compared.methods}).rows
        shown = [pretrained[0], *(row[0] for row in others)]
        names = [row[0] for row in table.rows]
        assert names in (shown, [shown[0], shown[-1]])  # all methods, or the recipe alone
    assert len(stored["Digits"].rows) == 4


def test_another_recipe_does_not_go_into_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        digits.main(["--recipe", "mine.yaml", "--write-readme"])
    assert ended.value.code == 2 and "--recipe mine.yaml; allowed: digits, digits_flow" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", digits.RECIPES)
def test_best_of_n_costs_about_what_the_search_does(recipe: str) -> None:
    """Within 20 %: N is a whole number."""
    compared = digits.RECIPES[recipe]
    search, best = (
        load(recipe, compared.methods[name]).config.search for name in [[*compared.methods][i] for i in (-1, 0)]
    )
    network, _, _ = counts(search)
    assert best.kind == "best_of_n"
    assert compared.best_of == pytest.approx(network / search.steps, rel=0.2)
