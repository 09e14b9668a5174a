"""The headers of the shipped recipes: what the plan says, and what fits a card."""

from __future__ import annotations

import pytest

from dav_ray.config.families.table import family_of
from dav_ray.config.memory import fit, search_memory, train_memory
from dav_ray.config.plan import plan, render
from dav_ray.config.recipe.cards import card_lines, with_cards
from dav_ray.config.recipe.load import SHIPPED, load, shipped

LARGE = [name for name in shipped() if not load(name).config.model.path.startswith("shipped:")]
LARGE = [name for name in LARGE if load(name).config.model.kind == "diffusers"]


def test_these_are_there() -> None:
    assert {"sd15", "sd21", "sdxl", "sdxl_turbo", "sd35_medium", "flux_dev", "flux_schnell"} <= set(LARGE)
    assert {"z_image_turbo", "sana_sprint", "qwen_image", "lcm"} <= set(LARGE)


@pytest.mark.parametrize("name", LARGE)
def test_a_header_says_what_the_plan_says(name: str) -> None:
    """`python jobs/recipe_headers.py` writes them."""
    config, text = load(name).config, (SHIPPED / f"{name}.yaml").read_text()
    header = [line for line in text.splitlines() if line.startswith("#")][: text.count("\n")]
    for line in card_lines(config):
        assert line in header and len(line) <= 120
    assert with_cards(text, config) == text
    said = {" ".join(line.split()) for line in render(config, plan(config)).splitlines()}
    assert f"work per sample {plan(config).figures.flops}" in said
    assert any(line.startswith("memory of a worker search some") for line in said)


def test_a_header_is_written_once() -> None:
    config = load("sd15").config
    once = with_cards("# About it.\nseed: 0\n", config)
    assert once.splitlines() == ["# About it.", *card_lines(config), "seed: 0"]
    assert with_cards(once, config) == once
    assert with_cards(once.replace("TFLOP", "GFLOP"), config) == once


@pytest.mark.parametrize("card", [24e9, 40e9, 80e9])
@pytest.mark.parametrize("name", ["sdxl", "flux_dev"])
def test_what_is_said_to_fit_fits_and_twice_as_much_does_not(name: str, card: float) -> None:
    config = load(name, ["search.micro_batch=1", "search.decode_batch=1", "mstep.micro_batch=1"]).config
    family, room = family_of(config.model), 0.9 * card - 0.6e9
    sizes, passes = family.described(config), family.passes(config)
    found = fit(config, sizes, card)

    def searching(states: int, decoded: int) -> bool:
        words = [f"search.micro_batch={states}", f"search.decode_batch={decoded}", f"evaluate.batch={min(4, states)}"]
        return search_memory(load(name, words).config, sizes, passes).total <= room

    def training(rows: int) -> bool:
        made = load(name, [f"mstep.micro_batch={rows}"]).config
        return train_memory(made, sizes, passes, checkpointing=found.checkpointing).total <= room

    if found.states:
        assert searching(found.states, found.decoded)
        assert 2 * found.states > config.search.chunk * config.search.candidates or not searching(2 * found.states, 1)
    else:
        assert not searching(1, 1)
    assert training(found.rows) if found.rows else not training(1)
    assert not found.rows or not training(2 * found.rows)


def test_a_card_that_holds_nothing_is_said_in_words() -> None:
    config = load("qwen_image").config
    assert str(fit(config, family_of(config.model).described(config), 24e9)) == (
        "search does not fit; training does not fit"
    )
