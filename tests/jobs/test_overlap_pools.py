"""Busy shares of pools against sums that are known, and what the recipe makes of them."""

from __future__ import annotations

import pytest

from dav_ray.config.plan import most_at_once
from dav_ray.config.recipe.load import load
from jobs.overlap.pools import POOLS, SAMPLES, START_S, Pool, busy


def test_in_turns_every_gpu_searches_and_its_rank_trains() -> None:
    """40 chunks of 200 s on 4 GPUs; 571 s of training on 2 of them; two starts."""
    found, training = busy(Pool(4, 2, 8, turns=True)), SAMPLES * 25 / 14
    round_s = 2000 + training / 2 + 2 * START_S
    assert found.round_s == pytest.approx(round_s)
    assert found.mean == pytest.approx((8000 + training) / 4 / round_s) and found.mean > 0.9
    assert found.least == pytest.approx(2000 / round_s)


def test_as_many_ranks_as_gpus_keep_every_gpu_busy() -> None:
    found = busy(Pool(4, 4, 8, turns=True))
    assert found.least == pytest.approx(found.mean) and found.least > 0.95


def test_apart_ranks_idle_unless_their_number_fits() -> None:
    apart, fitting = busy(Pool(4, 2, 8)), busy(Pool(14, 1, 2, overlap="stream"))
    assert apart.round_s == pytest.approx(2000 + SAMPLES * 25 / 14 / 2) and apart.least == pytest.approx(0.125)
    assert apart.mean < 0.65 and fitting.least > 0.9


def test_starts_outweigh_the_turns_of_a_large_pool() -> None:
    assert busy(Pool(64, 64, 1, turns=True)).mean < busy(Pool(60, 4, 1, overlap="stream")).mean


def test_the_recipe_takes_turns_on_four_gpus() -> None:
    config = load("sd15").config
    search, train = config.roles.search, config.roles.train
    assert Pool(search.replicas, train.replicas, config.search.chunk, turns=True) in POOLS
    assert (train.lifetime, search.idle_s, config.overlap) == ("round", 0, "none")
    assert most_at_once(config)[1] == search.replicas == 4


def test_the_recipe_is_the_run_that_it_was() -> None:
    """Only places changed: a run that began with GPUs for training alone goes on."""
    roles = ["roles.search.idle_s=null", "roles.train.lifetime=run"]
    assert load("sd15").config.identity() == load("sd15", roles).config.identity()
