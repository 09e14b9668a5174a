"""Idle and blind choices, and the alpha that is suggested for them: it has to bring the next search into the bounds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dav_ray.config.build import strategy
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.runtime.watch.choice_hints import astray
from dav_ray.search.options import Search
from dav_ray.search.turns import join
from dav_ray.search.weighting.choices import BLIND, GENTLE, HERE, IDLE, SCALES, Verdict, judge, ladder
from dav_ray.testing.base import BulkNoise, scorer
from dav_ray.testing.enumerable import Scores, model
from dav_ray.testing.gaussian import Linear, LinearGaussian, Quadratic
from dav_ray.types import Trajectories

CURVED = Quadratic(centre=(1.0, -0.5), matrix=((2.0, 0.8), (0.8, 0.6)), offset=0.5)
MANY = 240


def found(search: Search, alpha: float, reward: Any = CURVED, toy: Any = None, seed: int = 3) -> Trajectories:
    conditions = ["0.3"] * MANY if search.kind != "smc" else [f"0.3{' ' * (i // 12)}" for i in range(MANY)]
    diffusion = toy or LinearGaussian(steps=8)
    if isinstance(reward, Scores):
        conditions = [""] * MANY
    return strategy(search.model_copy(update={"alpha": alpha}))(
        diffusion, scorer(reward), conditions, BulkNoise(seed, MANY)
    )


def judged(found: Trajectories, most: float, alpha: float) -> Verdict | None:
    assert found.choices is not None
    by_value, by_weight = found.choices.mean(0).tolist()
    return judge(by_value, by_weight, most, alpha)


SEARCHES = {
    "dav": Search(candidates=4, gamma=0.9),
    "many": Search(candidates=32, gamma=0.9),
    "pair": Search(candidates=2, gamma=1.0),
    "gradient": Search(candidates=4, gradient=True),
    "anchored": Search(candidates=4, anchor="pretrained"),
    "svdd": Search(kind="svdd", candidates=4),
    "refine": Search(kind="refine", candidates=4, repeats=2, depth=0.5),
    "smc": Search(kind="smc", candidates=1, particles=1),
    "smc of dav": Search(kind="smc", candidates=3, particles=1),
}


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("kind, alpha", [("idle", 300.0), ("blind", 3e-5)])
def test_the_suggested_alpha_brings_the_search_into_the_bounds(name: str, kind: str, alpha: float) -> None:
    search = SEARCHES[name]
    most = 12.0 if search.kind == "smc" else float(search.candidates)
    verdict = judged(found(search, alpha), most, alpha)
    assert verdict is not None and verdict.kind == kind
    assert verdict.ess > IDLE * most if kind == "idle" else verdict.ess < BLIND
    if search.gradient and kind == "blind":
        plain = found(Search(kind="none"), 1.0).reward
        verdict = astray(verdict, alpha, float(plain.std()))
    assert verdict.alpha is not None and (verdict.alpha < alpha if kind == "idle" else verdict.alpha > alpha)

    following = found(search, verdict.alpha, seed=4)  # the next round: other noise
    assert judged(following, most, verdict.alpha) is None
    assert float(following.ess.mean()) > BLIND
    if not search.gradient:
        assert float(following.ess.mean()) < IDLE * most


def test_a_masked_model_too() -> None:
    alpha, search, diffusion = 1e3, Search(candidates=8), model()
    reward = Scores()
    verdict = judged(found(search, alpha, reward, diffusion), 8.0, alpha)
    assert verdict is not None and verdict.alpha is not None
    following = found(search, verdict.alpha, reward, diffusion, seed=4)
    assert BLIND < float(following.ess.mean()) < IDLE * 8


def test_it_is_the_effective_number_of_what_was_drawn() -> None:
    """At scale 1 the search's own; at scale s that of the same candidates under V s times as wide."""
    plain = found(Search(candidates=4, anchor="geometric(0.5)"), 0.7, toy=LinearGaussian(8).shifted(0.6))
    assert plain.choices is not None
    torch.testing.assert_close(plain.choices[:, 1, HERE], plain.ess)

    v, fixed = torch.tensor([[0.0, 1.0, 2.0], [5.0, 5.0, -math.inf]]), torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.0, 0.0]])
    w = (2 * v[0] + fixed[0]).double().exp()
    sizes = ladder(v, fixed)
    assert float(sizes[0, SCALES.index(2.0)]) == pytest.approx(float(w.sum() ** 2 / w.square().sum()), rel=1e-12)
    assert sizes[1].tolist() == pytest.approx([2.0] * len(SCALES))
    assert sizes[0, 0] == pytest.approx(3 * (1 + math.exp(0.5) + 1) ** 2 / (3 * (2 + math.exp(1))), rel=1e-3)


def test_small_spread_has_its_closed_form() -> None:
    """ESS/M = 1 / (1 + var log w) for small variance: the curve of a normal V, before and after the suggestion."""
    v = 1e-3 * torch.randn(4000, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    curve = ladder(v).mean(0)
    variance = float(v.var(1, correction=0).mean())
    assert float(curve[HERE]) == pytest.approx(64 / (1 + variance), rel=1e-9)
    verdict = judge(curve.tolist(), curve.tolist(), 64.0, 1.0)
    assert verdict is not None and verdict.alpha is not None
    aimed = BLIND + GENTLE * (IDLE * 64 - BLIND)
    assert float(ladder(v / verdict.alpha)[:, HERE].mean()) == pytest.approx(aimed, rel=0.1)


def test_a_tilt_that_does_all_the_work_is_not_idle() -> None:
    """A linear reward's gradient leaves all weights even, yet the search is far from idle."""
    search = Search(candidates=4, gradient=True, gamma=1.0)
    tilted = found(search, 0.3, Linear((1.0, -1.0)))
    assert float(tilted.ess.mean()) > IDLE * 4
    assert judged(tilted, 4.0, 0.3) is None
    idle = judged(found(search, 1e4, Linear((1.0, -1.0))), 4.0, 1e4)
    assert idle is not None and idle.kind == "idle"


def test_where_nothing_is_chosen_by_weight_nothing_is_said() -> None:
    for search in (Search(kind="none"), Search(kind="best_of_n"), Search(choice="best")):
        assert found(search, 1.0).choices is None
    adaptive = Search(kind="smc", candidates=1, particles=1, tempering="adaptive(0.97)")
    assert found(adaptive, 1.0).choices is None
    assert judged(found(Search(candidates=1), 1.0), 1.0, 1.0) is None


def test_no_alpha_is_suggested_where_none_helps() -> None:
    """All candidates have the same reward, or only one has any."""
    same = [4.0] * len(SCALES)
    assert judge(same, same, 4.0, 1.0) == Verdict("idle", 4.0, 4.0, None)
    alone = [1.0] * len(SCALES)
    assert judge(alone, alone, 4.0, 1.0) == Verdict("blind", 1.0, 4.0, None)


def test_parts_of_a_chunk_keep_theirs() -> None:
    search = strategy(Search(candidates=3, alpha=0.5))
    diffusion, names = LinearGaussian(4), ["0.3", "1", "-1", "0"]
    whole = search(diffusion, scorer(CURVED), names, KeyedNoise(0, 1, range(4)))
    parts = [search(diffusion, scorer(CURVED), names[i : i + 2], KeyedNoise(0, 1, [i, i + 1])) for i in (0, 2)]
    assert whole.choices is not None and whole.choices.shape == (4, 2, len(SCALES))
    torch.testing.assert_close(join(parts).choices, whole.choices)
