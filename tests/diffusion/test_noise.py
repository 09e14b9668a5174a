"""Random streams: they belong to what is drawn, not to who draws it."""

from __future__ import annotations

import numpy as np
import torch

from dav_ray.diffusion.noise import KeyedNoise, PipelineNoise, generator

SHAPE = (2, 3)


def test_a_trajectorys_stream_is_the_same_in_any_batch() -> None:
    whole = KeyedNoise(7, 3, [0, 5, 9]).at(4)
    normal, uniform, more = whole.normal(SHAPE), whole.uniform(()), whole.normal(SHAPE)
    for row, i in enumerate([0, 5, 9]):
        alone = KeyedNoise(7, 3, [i]).at(4)
        assert torch.equal(alone.normal(SHAPE)[0], normal[row])
        assert torch.equal(alone.uniform(())[0], uniform[row])
        assert torch.equal(alone.normal(SHAPE)[0], more[row])
    assert normal.shape == (3, *SHAPE) and normal.dtype == torch.float32
    assert uniform.shape == (3,) and uniform.dtype == torch.float64


def test_streams_start_afresh_for_every_step() -> None:
    noise = KeyedNoise(7, 3, [0, 1])
    first = noise.at(4).normal(SHAPE)
    noise.at(3).normal(SHAPE)

    assert torch.equal(noise.at(4).normal(SHAPE), first)


def test_every_part_of_the_key_counts() -> None:
    keys = {
        "itself": KeyedNoise(7, 3, [1]).at(4),
        "seed": KeyedNoise(8, 3, [1]).at(4),
        "round": KeyedNoise(7, 4, [1]).at(4),
        "trajectory": KeyedNoise(7, 3, [2]).at(4),
        "step": KeyedNoise(7, 3, [1]).at(3),
        "swapped": KeyedNoise(7, 3, [4]).at(1),
    }
    first = [round(float(draws.uniform(())[0]), 12) for draws in keys.values()]

    assert len(set(first)) == len(keys)


def test_copies_are_independent_and_adjacent() -> None:
    plain, copies = KeyedNoise(7, 3, [1, 2]), KeyedNoise(7, 3, [1, 2]).copies(3)
    drawn = copies.at(4).normal(SHAPE)

    assert drawn.shape == (6, *SHAPE)
    assert torch.equal(drawn[[0, 3]], plain.at(4).normal(SHAPE))
    assert len({round(float(x), 6) for x in drawn[:, 0, 0]}) == 6
    assert torch.equal(KeyedNoise(7, 3, [2]).copies(3).at(4).normal(SHAPE), drawn[3:])


def test_the_pipelines_order_is_one_generator_per_sample() -> None:
    noise, seeds = PipelineNoise([11, 12]), [11, 12]
    drawn = [noise.at(2).normal(SHAPE), noise.at(1).normal((1, *SHAPE))[:, 0], noise.at(0).normal(SHAPE)]
    for row, seed in enumerate(seeds):
        torch_generator = torch.Generator().manual_seed(seed)
        for step in drawn:
            assert torch.equal(step[row], torch.randn((1, *SHAPE), generator=torch_generator)[0])


def test_neighbouring_keys_give_unrelated_streams() -> None:
    """First draws of 4000 neighbours: standard normal, and no correlation from one to the next."""
    num = 4000
    x = np.array([float(torch.randn((), generator=generator(0, 1, i, 2, 0))) for i in range(num)])
    error = 1 / num**0.5

    assert abs(x.mean()) < 4 * error
    assert abs(x.var() - 1) < 4 * 2**0.5 * error
    assert abs((x[1:] * x[:-1]).mean()) < 4 * error


def test_keys_of_different_length_are_different_streams() -> None:
    """The M-step's order has one number more than the search's keys."""
    seeds = [generator(*key).initial_seed() for key in ((0, 1, 2, 3), (0, 1, 2, 3, 0), (0, 1, 2, 3, 0, 0))]

    assert len(set(seeds)) == 3


def test_streams_are_the_same_everywhere() -> None:
    """A change of the key's hashing would break runs that go on after an upgrade."""
    assert generator(0, 1, 2, 3, 0).initial_seed() == 8326756604625125196
    assert float(torch.rand((), generator=generator(0, 1, 2, 3, 0), dtype=torch.float64)) == 0.0923069200021267
