"""Warm starts: which sample of the last round a trajectory goes on from, and what a search makes of it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dav_ray.config.partition import round_prompts, spans
from dav_ray.config.schema import Config
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.errors import RunError
from dav_ray.run_dir import shards
from dav_ray.run_dir.arrays import stored_sample
from dav_ray.run_dir.manifest import ManifestStore, Shard, round_manifest_path
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.runtime.search.starts import LastRound, read
from dav_ray.search.dav import Dav
from dav_ray.search.refine import Refine
from dav_ray.search.warm_start import Starts, assign
from dav_ray.testing.base import scorer
from dav_ray.testing.enumerable import MASK, Scores, model
from dav_ray.testing.gaussian import Bowl, LinearGaussian
from dav_ray.types import Chunk, Cost, Trajectories

DEAD = -math.inf
PROMPTS = ["", "fixed=0:A", "fixed=1:C"]
# the rows of round 2 by prompt: 2 (dead) and 5; 0, 3 and 6; 1 and 4. Round 3 begins with the third prompt
OWN = [1, 5, 0, 4, 5, 3, 1]


def sources(mode: str, now: list[str], before: list[str], reward: list[float], seed: int = 0) -> list[int | None]:
    return assign(mode, now, before, torch.tensor(reward, dtype=torch.float64), alpha=0.5, seed=seed, round=2)


# ---- who starts from what ----


def test_own_is_one_to_one_and_in_order() -> None:
    assert sources("own", ["b", "a", "a", "b"], ["a", "b", "a", "b"], [0.0, 1.0, 2.0, 3.0]) == [1, 0, 2, 3]
    assert sources("own", ["a"] * 5, ["a", "b", "a"], [0.0, 1.0, 2.0]) == [0, 2, 0, 2, 0]
    assert sources("own", ["a"] * 3, ["a"] * 4, [0.0, DEAD, 2.0, 3.0]) == [0, 2, 3]


@pytest.mark.parametrize("mode", ["own", "resampled"])
def test_where_nothing_can_be_a_start_there_is_none(mode: str) -> None:
    assert sources(mode, ["a", "b", "c"], ["a", "b"], [DEAD, 1.0]) == [None, 1, None]


def test_resampled_copies_are_as_many_as_softmax_says() -> None:
    """Rounded down or up, and on average over rounds' noise exactly; the dead are never drawn."""
    reward = [0.0, DEAD, 0.7, 0.3]
    weights = torch.softmax(torch.tensor(reward) / 0.5, 0) * 10
    counts = torch.zeros(400, 4)
    for seed in range(400):
        found = Counter(sources("resampled", ["a"] * 10, ["a"] * 4, reward, seed))
        counts[seed] = torch.tensor([found[i] for i in range(4)])

    assert ((counts >= weights.floor()) & (counts <= weights.ceil())).all() and (counts.sum(1) == 10).all()
    torch.testing.assert_close(counts.mean(0), weights, rtol=0, atol=4 * 0.5 / 400**0.5)


def trajectories(num: int, steps: int, seed: int, latents: bool) -> Trajectories:
    rng = torch.Generator().manual_seed(seed)
    shape = (steps + 1, num, 4)
    states = torch.randn(shape, generator=rng) if latents else torch.randint(4, shape, generator=rng)
    sample = torch.rand((num, 3, 2, 2), generator=rng) if latents else torch.randint(3, (num, 4), generator=rng)
    reward = torch.arange(num, dtype=torch.float64) / num
    return Trajectories(states, None, sample, reward.index_fill(0, torch.tensor([2]), DEAD), None, 1 + reward, Cost())


def take(found: Trajectories, rows: range) -> Trajectories:
    part = slice(rows.start, rows.stop)
    states, sample = found.states[:, part], found.sample[part]
    return replace(found, states=states, sample=sample, reward=found.reward[part], ess=found.ess[part])


def run_of(place: Path, mode: str, chunk: int, latents: bool = False) -> tuple[Config, LastRound, Trajectories]:
    """A run whose rounds 1 and 2 are closed, and what round 2 accepted."""
    search = {"kind": "refine", "trajectories": 7, "chunk": chunk, "warm_start": mode, "alpha": 0.5}
    settings = {"model": {"kind": "masked", "path": "x"}, "reward": {"kind": "gc_content"}}
    config = Config.model_validate({**settings, "prompts": PROMPTS, "search": search})
    storage = open_storage(str(place))
    store = ManifestStore(storage)
    store.open(config.identity(), {})
    found = trajectories(7, 3, 0, latents)
    for round in (1, 2):
        found, prompts = trajectories(7, 3, round, latents), round_prompts(PROMPTS, round, 7, together=False)
        for index, rows in enumerate(spans(7, chunk)):
            item = Chunk(0, round, index, 0, tuple(rows), tuple(prompts[n] for n in rows))
            data, sha256 = shards.encode(shards.to_table(item, take(found, rows)))
            storage.write(path := shards.shard_path(round, index, sha256), data)
            store.commit([Shard(path, sha256, index, len(rows), 0)])
        store.close_round({})
    return config, LastRound(config, storage), found


def chunks_of_round_3(size: int) -> list[Chunk]:
    prompts = round_prompts(PROMPTS, 3, 7, together=False)
    return [Chunk(0, 3, i, 0, tuple(n), tuple(prompts[j] for j in n)) for i, n in enumerate(spans(7, size))]


@pytest.mark.parametrize("mode", ["own", "resampled"])
def test_starts_do_not_depend_on_how_rounds_are_cut(tmp_path: Path, mode: str) -> None:
    """Neither the last round nor this one; the starts are that round's last states, with what is known of them."""
    seen = []
    for size in (2, 3, 7):
        _, last, found = run_of(tmp_path / str(size), mode, size)
        starts = [last.starts(chunk, "cpu") for chunk in chunks_of_round_3(8 - size)]
        parts = [s for s in starts if s is not None]
        assert [s.rows for s in parts] == [tuple(range(len(span))) for span in spans(7, 8 - size)]
        seen.append(torch.cat([torch.cat([s.x_0, s.sample, s.reward[:, None], s.ess[:, None]], 1) for s in parts]))
        rows = [int(r) for r in (seen[-1][:, -2] * 7).round()]
        assert torch.equal(seen[-1][:, :4], found.states[-1, rows].double()) and 2 not in rows
        assert torch.equal(seen[-1][:, 4:8], found.sample[rows].double())
        before, now = (round_prompts(PROMPTS, round, 7, together=False) for round in (2, 3))
        assert [before[row] for row in rows] == now
        if mode == "own":
            assert rows == OWN
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])


def test_only_the_last_round_is_read_and_never_a_changed_shard(tmp_path: Path) -> None:
    _, last, _ = run_of(tmp_path, "own", 3)
    for shard in (tmp_path / "buffer/round=0001").glob("*.parquet"):
        shard.unlink()
    (tmp_path / round_manifest_path(1)).unlink()
    first, *others = chunks_of_round_3(3)
    storage = open_storage(str(tmp_path))
    shards = sorted((tmp_path / "buffer/round=0002").glob("*.parquet"))

    assert last.starts(first, "cpu") is not None
    shards[0].write_bytes(shards[1].read_bytes())
    assert last.starts(others[0], "cpu") is not None  # read once
    with pytest.raises(RunError, match="chunk 0 has sha256"):
        read(storage, 2)
    shards[0].unlink()
    with pytest.raises(RunError, match="chunk 0 is absent"):
        read(storage, 2)


def test_the_first_round_and_off_have_no_starts(tmp_path: Path) -> None:
    config, last, _ = run_of(tmp_path, "off", 3)
    (chunk, *_) = chunks_of_round_3(3)
    own = config.model_copy(update={"search": config.search.model_copy(update={"warm_start": "own"})})

    assert last.starts(chunk, "cpu") is None
    assert LastRound(own, open_storage(str(tmp_path))).starts(replace(chunk, round=1), "cpu") is None


def test_images_come_back_as_they_are_stored(tmp_path: Path) -> None:
    _, last, found = run_of(tmp_path, "own", 7, latents=True)
    starts = last.starts(chunks_of_round_3(7)[0], "cpu")
    assert starts is not None

    assert torch.equal(starts.x_0, found.states[-1, OWN])
    assert (stored_sample(starts.sample) == stored_sample(found.sample)[OWN]).all()


# ---- what a search makes of it ----


def starts_of(found: Trajectories, rows: list[int]) -> Starts:
    each = found.reward[rows].unsqueeze(1)
    return Starts(tuple(rows), found.states[-1, rows], found.sample[rows], found.reward[rows], found.ess[rows], each)


def test_rounds_keep_or_raise_where_alpha_is_small() -> None:
    search, conditions, found = Refine(Dav(2, 1e-6, 1.0, False, 0.0), 1, 0.5), ["0.3"] * 40, None
    rewards: list[Tensor] = []
    for round in range(1, 5):
        starts = starts_of(found, list(range(40))) if found else None
        found = search(LinearGaussian(4), scorer(Bowl()), conditions, KeyedNoise(0, round, range(40)), starts)
        rewards.append(found.reward)
    for before, after in zip(rewards, rewards[1:], strict=False):
        assert (after >= before).all() and (after > before).any()


@pytest.mark.parametrize("gradient", [False, True])
def test_a_start_costs_nothing_and_is_not_scored(gradient: bool) -> None:
    """T = 8, s = 2, M = 4, R = 3."""
    search, noise = Refine(Dav(4, 0.5, 1.0, gradient, 0.0), 3, 0.25), KeyedNoise(0, 2, [0])
    first = search(LinearGaussian(8), scorer(Bowl()), ["0.3"], KeyedNoise(0, 1, [0]))
    found = search(LinearGaussian(8), scorer(Bowl()), ["0.3"], noise, starts_of(first, [0]))
    backward = 3 * 2 if gradient else 0

    assert found.cost == Cost(network=3 * ((2 if gradient else 1) + 4), backward=backward, reward=3 * 2 * 4 + backward)


def test_a_start_that_stays_brings_its_reward_under_a_path_of_the_forward_process() -> None:
    """Its reward is what was said of it, here above all others; the other starts, below all, are replaced."""
    diffusion, many = model(steps=6), 40
    x_0 = torch.randint(3, (many, 4), generator=torch.Generator().manual_seed(0))
    known = torch.where(torch.arange(many) % 2 == 0, 100.0, -100.0).double()
    ess = torch.full((many,), 2.5, dtype=torch.float64)
    starts = Starts(tuple(range(many)), x_0, x_0, known, ess, known.unsqueeze(1))
    found = Refine(Dav(3, 0.5, 1.0, False, 0.0), 2, 0.5)(
        diffusion, scorer(Scores()), [""] * many, KeyedNoise(0, 2, range(many)), starts
    )
    masks, even = (found.states == MASK).sum(-1), slice(0, None, 2)

    assert found.states.shape == (7, many, 4) and found.log_weight is None
    assert torch.equal(found.states[-1, even], x_0[even]) and torch.equal(found.sample[even], x_0[even])
    assert (found.reward[even] == 100).all() and (found.ess[even] == 2.5).all()
    assert (masks[:-1] >= masks[1:]).all() and (masks[0] == 4).float().mean() > 0.9
    stand = found.states[:-1] != MASK
    assert torch.equal(found.states[:-1][stand], found.states[1:][stand])
    # of 20 times 4 letters about t / T are masked at t
    share = masks[:, even].float().mean(1) / 4
    torch.testing.assert_close(share, torch.arange(6, -1, -1) / 6, rtol=0, atol=4 * (0.25 / 80) ** 0.5)
    torch.testing.assert_close(found.reward[1::2], scorer(Scores()).score(found.sample[1::2], [""] * (many // 2)))


def test_what_has_no_start_is_searched_as_in_a_first_round() -> None:
    """Rows with and without one side by side: each as it would be among its own kind."""
    diffusion, search = LinearGaussian(4), Refine(Dav(2, 0.5, 0.9, False, 0.0), 2, 0.5)
    before = search(diffusion, scorer(Bowl()), ["0.3"] * 5, KeyedNoise(0, 1, range(5)))

    def again(rows: list[int], warm: list[int]) -> Trajectories:
        starts = replace(starts_of(before, warm), rows=tuple(rows.index(i) for i in warm)) if warm else None
        return search(diffusion, scorer(Bowl()), ["0.3"] * len(rows), KeyedNoise(0, 2, rows), starts)

    mixed, fresh, warm = again([0, 1, 2, 3, 4], [1, 3]), again([0, 2, 4], []), again([1, 3], [1, 3])
    for rows, alone in (([0, 2, 4], fresh), ([1, 3], warm)):
        torch.testing.assert_close(mixed.states[:, rows], alone.states)
        torch.testing.assert_close(mixed.sample[rows], alone.sample)
        torch.testing.assert_close(mixed.reward[rows], alone.reward)
        torch.testing.assert_close(mixed.ess[rows], alone.ess)
    assert mixed.cost == fresh.cost + warm.cost
