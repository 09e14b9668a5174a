"""Parts of a chunk by turns: the same bits whoever waits, each part's own count, no time lost on a slow reward."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.errors import RewardError
from dav_ray.rewards.base import Scored, Scorer, evaluate
from dav_ray.search.dav import Dav
from dav_ray.search.smc import Smc
from dav_ray.search.turns import Turns, in_turns, join
from dav_ray.testing.gaussian import Bowl, LinearGaussian
from dav_ray.types import Chunk, Cost, Trajectories
from tests.support.deadlines import stretched

CONDITIONS = ("0.3", "0.3", "-0.5", "0.3", "1.0", "1.0", "0.0")
CHUNK = Chunk(5, 2, 0, 0, tuple(range(7)), CONDITIONS)
SEARCHES = [Dav(4, 0.7, 0.9, False, 0.3), Dav(3, 0.7, 0.9, True, 0.0), Smc(Dav(2, 0.7, 0.9, False, 0.0), 2)]


class Slow(LinearGaussian):
    """A network that takes its time, and notes whether two threads were in it."""

    def __init__(self, steps: int, seconds: float) -> None:
        super().__init__(steps)
        self.seconds, self.inside, self.most = seconds, 0, 0

    def predict(self, *args: Any, **options: Any) -> Any:
        self.inside += 1
        self.most = max(self.most, self.inside)
        time.sleep(self.seconds)
        try:
            return super().predict(*args, **options)
        finally:
            self.inside -= 1


def remote(seconds: float, fails: str = "", jitter: float = 0.0) -> Scorer:
    """A reward elsewhere that takes its time; fails: the condition at which it raises."""

    def call(samples: np.ndarray, conditions: Sequence[str], grad: bool) -> list[Scored]:
        time.sleep(seconds + jitter * random.random())
        if fails in conditions:
            return [Scored(error="RuntimeError: no")]
        return [evaluate(Bowl(), samples, conditions, grad)]

    return Scorer(["bowl"], [1.0], call)


def run(search: Any, toy: LinearGaussian, scorer: Scorer, parts: Sequence[Chunk]) -> list[Trajectories]:
    def work(part: Chunk, turns: Turns) -> Trajectories:
        noise = KeyedNoise(part.seed, part.round, part.trajectories)
        return search(toy, scorer.of("0", turns.waiting), part.conditions, noise)

    return in_turns(Turns(toy), parts, work)


@pytest.mark.parametrize("search", SEARCHES, ids=["reference", "gradient", "smc"])
def test_turns_change_no_bit_and_no_count(search: Any) -> None:
    parts = CHUNK.parts(3, together=isinstance(search, Smc))
    toy = Slow(5, 0.0)
    by_turns = run(search, toy, remote(0.0, jitter=0.004), parts)
    assert toy.most == 1
    for part, found in zip(parts, by_turns, strict=True):
        (alone,) = run(search, LinearGaussian(5), remote(0.0), [part])
        for name in ("states", "sample", "reward", "log_weight", "ess", "step_ess"):
            assert torch.equal(getattr(found, name), getattr(alone, name)), name
        assert found.cost == alone.cost
    whole = join(by_turns)
    assert whole.states.shape == (6, 7, 2) and whole.targets is None
    assert whole.cost == sum((found.cost for found in by_turns), Cost())
    assert torch.equal(whole.reward[: len(parts[0].conditions)], by_turns[0].reward)


@pytest.mark.parametrize("num", [1, 2])
def test_time_in_which_nothing_is_computed_is_no_computing(num: int) -> None:
    """Network and reward take equally long: one part waits half of the time, two hardly ever."""
    search, steps, pause = Dav(2, 0.7, 0.9, False, 0.0), 8, 0.05
    toy, scorer = Slow(steps, pause), remote(pause)
    turns, began = Turns(toy), time.monotonic()

    def work(part: Chunk, turns: Turns) -> Trajectories:
        noise = KeyedNoise(part.seed, part.round, part.trajectories)
        return search(toy, scorer.of("0", turns.waiting), part.conditions, noise)

    in_turns(turns, CHUNK.parts(num, together=False), work)
    seconds = time.monotonic() - began
    assert turns.computed_s >= num * steps * pause
    waited = seconds - turns.computed_s
    assert waited >= 0.9 * steps * pause if num == 1 else waited <= stretched(3 * pause)


def test_one_part_is_the_search_itself() -> None:
    (by_turns,) = run(SEARCHES[0], LinearGaussian(5), remote(0.0), CHUNK.parts(1, together=False))
    noise = KeyedNoise(CHUNK.seed, CHUNK.round, CHUNK.trajectories)
    assert torch.equal(by_turns.states, SEARCHES[0](LinearGaussian(5), remote(0.0), CONDITIONS, noise).states)


def test_chunks_are_cut_evenly_and_between_conditions_where_these_stay_together() -> None:
    apart = CHUNK.parts(3, together=False)
    assert [part.trajectories for part in apart] == [(0, 1), (2, 3, 4), (5, 6)]
    assert [part.conditions for part in CHUNK.parts(2, together=True)] == [CONDITIONS[:4], CONDITIONS[4:]]
    assert [len(part.conditions) for part in CHUNK.parts(7, together=True)] == [2, 1, 1, 2, 1]
    assert len(CHUNK.parts(50, together=False)) == 7
    same = Chunk(5, 2, 0, 0, (4, 9), ("a", "a"))
    assert same.parts(2, together=True) == [same]


def test_a_reward_as_slow_as_the_network_costs_little() -> None:
    """Two parts: both are busy all the time, but for the first step and the last."""
    search, steps, pause = Dav(2, 0.7, 0.9, False, 0.0), 16, 0.08
    slower = steps * pause  # calls of network and reward, per part: x_T, then the candidates of each step

    def share(num: int) -> float:
        start = time.perf_counter()
        run(search, Slow(steps, pause / num), remote(pause / num), CHUNK.parts(num, together=False))
        return slower / (time.perf_counter() - start)

    assert share(1) < 0.55
    # 0.9 where nothing else runs; another process may cost any one of them its time, and turns that wait, all
    assert any(share(2) > 0.75 for _ in range(8))


def test_a_failure_ends_the_other_parts_and_is_the_one_that_is_told() -> None:
    toy, parts = Slow(40, 0.005), CHUNK.parts(3, together=False)
    start = time.perf_counter()
    with pytest.raises(RewardError, match="RuntimeError: no"):
        run(SEARCHES[0], toy, remote(0.001, fails="-0.5"), parts)
    assert time.perf_counter() - start < stretched(3 * 40 * 0.005 / 2)  # long before their end
    assert len(run(SEARCHES[0], toy, remote(0.0), parts)) == 3
