"""What each of several rewards said of an accepted sample: carried along by every search, never asked again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.rewards.base import Scorer, local_scorer
from dav_ray.search.best_of_n import BestOfN
from dav_ray.search.dav import Dav
from dav_ray.search.plain import NoSearch
from dav_ray.search.refine import Refine
from dav_ray.search.smc import Smc
from dav_ray.search.svdd import Svdd
from dav_ray.search.turns import join
from dav_ray.search.warm_start import Starts
from dav_ray.testing.enumerable import Scores, model
from dav_ray.testing.gaussian import Bowl, LinearGaussian

WEIGHTS = (0.75, -2.0)
DAV = Dav(3, 0.7, 0.9, False, 0.0)
SEARCHES = {
    "dav": DAV,
    "skipping": Dav(3, 0.7, 0.9, False, 0.0, unscored=frozenset({1, 3})),
    "gradient": Dav(3, 0.7, 0.9, True, 0.0),
    "smc": Smc(DAV, 2),
    "svdd": Svdd(3, 0.7),
    "refine": Refine(DAV, 2, 0.5),
    "best_of_n": BestOfN(3),
    "none": NoSearch(0.7, 0.0),
}


class Slope:
    """A second reward: the first coordinate, or whether the first letter is the second of the alphabet."""

    differentiable = True

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        if samples.ndim == 3:
            return samples[:, 0, 1]
        return samples[:, 0] if samples.is_floating_point() else (samples[:, 0] == 1).double()


class Sum:
    """Both in one."""

    differentiable = True

    def __init__(self, rewards: Sequence[Any]) -> None:
        self.rewards = rewards

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        return sum(w * r(samples, conditions).double() for w, r in zip(WEIGHTS, self.rewards, strict=True))  # type: ignore[return-value]


def two(first: Any) -> Scorer:
    return local_scorer([("first", WEIGHTS[0], first), ("slope", WEIGHTS[1], Slope())])


def problem(masked: bool) -> tuple[Any, Any, list[str]]:
    return (model(moved=0.3, steps=6), Scores(), [""] * 8) if masked else (LinearGaussian(6), Bowl(), ["0.3"] * 8)


@pytest.mark.parametrize("masked", [False, True], ids=["gaussian", "masked"])
@pytest.mark.parametrize("name", SEARCHES)
def test_every_search_carries_what_each_reward_said_of_the_winner(name: str, masked: bool) -> None:
    (diffusion, reward, conditions), search = problem(masked), SEARCHES[name]
    found = search(diffusion, two(reward), conditions, KeyedNoise(3, 1, range(8)))  # type: ignore[operator]
    assert found.each is not None and found.each.shape == (8, 2) and found.each.dtype == torch.float64
    expected = torch.stack([r(found.sample, conditions).double() for r in (reward, Slope())], dim=1)
    torch.testing.assert_close(found.each, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(0.0 + WEIGHTS[0] * found.each[:, 0] + WEIGHTS[1] * found.each[:, 1], found.reward)
    assert found.each[:, 0].std() > 0

    diffusion, _, _ = problem(masked)
    one = local_scorer([("sum", 1.0, Sum([reward, Slope()]))])
    alone = search(diffusion, one, conditions, KeyedNoise(3, 1, range(8)))  # type: ignore[operator]
    assert found.cost == alone.cost
    torch.testing.assert_close(found.states, alone.states, rtol=1e-5, atol=1e-5)


def test_a_start_keeps_what_was_said_of_it_and_parts_are_joined() -> None:
    diffusion, search, conditions = LinearGaussian(6), Refine(DAV, 2, 0.5), ["0.3"] * 4
    first = search(diffusion, two(Bowl()), conditions, KeyedNoise(0, 1, range(4)))
    assert first.each is not None
    rows = [1, 3]
    high, said = torch.full((2,), 100.0, dtype=torch.float64), torch.tensor([[1.0, 2.0], [torch.nan, torch.nan]])
    starts = Starts((0, 2), first.states[-1, rows], first.sample[rows], high, first.ess[rows], said.double())
    found = search(diffusion, two(Bowl()), conditions, KeyedNoise(0, 2, range(4)), starts)
    assert found.each is not None
    assert found.each[0].tolist() == [1.0, 2.0] and bool(found.each[2].isnan().all())
    expected = torch.stack([Bowl()(found.sample, conditions), Slope()(found.sample, conditions)], dim=1).double()
    torch.testing.assert_close(found.each[[1, 3]], expected[[1, 3]], rtol=1e-5, atol=1e-6)
    whole = join([first, found])
    assert whole.each is not None and torch.equal(whole.each[:4], first.each) and whole.each.shape == (8, 2)
