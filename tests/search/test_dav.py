"""DAV's E-step: against a loop that is written from the paper, and against laws that are known in closed form."""

from __future__ import annotations

import math
import pickle
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from dav_ray.config.build import strategy
from dav_ray.diffusion.base import Prediction, Room
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.search.best_of_n import BestOfN
from dav_ray.search.dav import Dav
from dav_ray.search.options import Search as SearchConfig
from dav_ray.search.plain import NoSearch
from dav_ray.testing.base import BulkNoise, scorer
from dav_ray.testing.gaussian import Bowl, HalfSpace, Linear, LinearGaussian
from dav_ray.types import Cost, Trajectories

CONDITIONS = ["0.3", "-0.5", "0.3", "1.0", "0.0", "0.2"]
ALPHA, GAMMA = 0.7, 0.9
ANCHORS = [0.0, 1.0, 0.3]  # current, pretrained, geometric(0.3)


def search(
    *, num: int = 4, gradient: bool = False, beta: float = 0.0, toy: LinearGaussian | None = None, reward: Any = None,
    conditions: Sequence[str] = tuple(CONDITIONS), noise: Any = None, gamma: float = GAMMA,
) -> Trajectories:  # fmt: skip
    noise = noise or KeyedNoise(5, 2, range(len(conditions)))
    return Dav(num, ALPHA, gamma, gradient, beta)(
        toy or LinearGaussian().shifted(0.8), scorer(reward or Bowl()), conditions, noise
    )


# ---- one trajectory at a time, one candidate at a time, from section "E-step" of the paper ----


@dataclass
class Expected:
    states: list[Tensor]
    log_weight: float
    sizes: list[float]


def by_hand(
    toy: LinearGaussian, reward: Bowl, condition: str, noise: KeyedNoise, num: int, gradient: bool, beta: float
) -> Expected:
    """The reward's gradient through x0_hat is written out: x0_hat is linear in x_t with slope `gain`."""
    x = noise.at(toy.steps).normal((toy.dim,))
    out, kept = Expected([x[0]], 0.0, []), 0.0
    for t in range(toy.steps, 0, -1):
        rng = noise.at(t - 1)
        with torch.no_grad():
            now = toy.predict(x, t, [condition])
            pretrained = toy.predict(x, t, [condition], reference=True).kernel.mean.double()
        mean, std = now.kernel.mean.double(), now.kernel.std.double()
        proposal = mean
        if gradient and std > 0:
            centre = 1 + float(condition)
            slope = -2 * (now.x0_hat.double() - centre) * float(toy.gain(float(toy.schedule.alpha_bar[t])))
            proposal = mean + std**2 * GAMMA ** (t - 1) * slope / ALPHA
        count = num if std > 0 else 1
        draws = proposal[0] + std[0] * rng.normal((count, toy.dim))[0]
        log_w, values = [], []
        for candidate in draws:
            clean = candidate
            if t > 1:
                with torch.no_grad():
                    clean = toy.predict(candidate[None].float(), t - 1, [condition]).x0_hat[0].double()
            values.append(GAMMA ** (t - 1) * float(reward(clean[None], [condition])) / ALPHA)
            ratio = 0.0
            if std > 0:
                ratio = (1 - beta) * density(candidate, mean, std) + beta * density(candidate, pretrained, std)
                ratio -= density(candidate, proposal, std)
            log_w.append(values[-1] + ratio)
        weights = [math.exp(w - max(log_w)) for w in log_w]
        level, pick = float(rng.uniform(())) * sum(weights), 0
        while sum(weights[: pick + 1]) <= level:
            pick += 1
        out.log_weight += math.log(sum(weights) / count) + max(log_w) - kept
        kept, x = values[pick], draws[pick][None].float()
        out.states.append(x[0])
        if std > 0:
            out.sizes.append(sum(weights) ** 2 / sum(w * w for w in weights))
    return out


def density(x: Tensor, mean: Tensor, std: Tensor) -> float:
    return float(Normal(mean[0], std[0]).log_prob(x).sum())


@pytest.mark.parametrize("last_alpha", [0.97, 1.0])
@pytest.mark.parametrize("beta", ANCHORS)
@pytest.mark.parametrize("gradient", [False, True])
def test_every_number_is_that_of_the_loop(gradient: bool, beta: float, last_alpha: float) -> None:
    toy = LinearGaussian(steps=4, last_alpha=last_alpha).shifted(0.8)
    found = search(toy=toy, gradient=gradient, beta=beta)
    for i, condition in enumerate(CONDITIONS):
        expected = by_hand(toy, Bowl(), condition, KeyedNoise(5, 2, [i]), 4, gradient, beta)
        torch.testing.assert_close(found.states[:, i], torch.stack(expected.states), rtol=1e-4, atol=1e-4)
        assert found.log_weight is not None
        assert float(found.log_weight[i]) == pytest.approx(expected.log_weight, abs=2e-3)
        assert float(found.ess[i]) == pytest.approx(sum(expected.sizes) / len(expected.sizes), abs=2e-3)
    assert torch.equal(found.sample, found.states[-1])
    torch.testing.assert_close(found.reward, Bowl()(found.sample, CONDITIONS).double())


# ---- properly weighted: E[W] = Z, and the weighted x_0 follow the tilted law ----

SLOPE = (0.5, -0.3)
MANY = 20_000


def check_tilted_law(found: Trajectories, toy: LinearGaussian, beta: float) -> None:
    """anchor exp(r / alpha) for linear r: x_0 stays Gaussian, moved by variance * slope / alpha."""
    mean, variance = toy.law("0.3", beta)
    tilt = torch.tensor(SLOPE, dtype=torch.float64) / ALPHA
    log_z = float(tilt @ mean + 0.5 * variance * tilt.square().sum()) + toy.log_normaliser(beta)
    assert found.log_weight is not None and len(found.log_weight) == MANY
    w = (found.log_weight - log_z).exp()

    assert abs(w.mean() - 1) < 4 * w.std() / MANY**0.5
    assert w.std() / MANY**0.5 < 0.02  # otherwise the line above could not fail
    share = (w / w.sum()).unsqueeze(1)
    x = found.states[-1].double()
    tilted = (share * x).sum(0)
    error = (share * (x - tilted)).square().sum(0).sqrt()
    assert ((tilted - (mean + variance * tilt)).abs() < 4 * error).all()
    assert (error < 0.03).all()


@pytest.mark.parametrize("gamma", [0.9, 0.5])
@pytest.mark.parametrize("num", [1, 4])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("beta", ANCHORS)
def test_the_weights_are_proper_at_any_number_of_candidates(
    beta: float, gradient: bool, num: int, gamma: float
) -> None:
    toy = LinearGaussian(steps=3).shifted(0.4)
    found = search(
        toy=toy, reward=Linear(SLOPE), num=num, gradient=gradient, beta=beta, gamma=gamma,
        conditions=["0.3"] * MANY, noise=BulkNoise(num, MANY),
    )  # fmt: skip
    check_tilted_law(found, toy, beta)


def test_the_weights_are_proper_with_a_deterministic_last_step() -> None:
    toy = LinearGaussian(steps=3, last_alpha=1.0).shifted(0.4)
    found = search(toy=toy, reward=Linear(SLOPE), gradient=True, conditions=["0.3"] * MANY, noise=BulkNoise(1, MANY))
    check_tilted_law(found, toy, 0.0)


def test_plain_samples_are_properly_weighted_too() -> None:
    toy = LinearGaussian(steps=3).shifted(0.4)
    found = NoSearch(ALPHA, 0.0)(toy, scorer(Linear(SLOPE)), ["0.3"] * MANY, BulkNoise(1, MANY))  # type: ignore[arg-type]
    check_tilted_law(found, toy, 0.0)


def test_more_candidates_follow_the_reward_further() -> None:
    """The choice must matter: without weights, more candidates give a higher reward, and so does the gradient."""
    conditions, rewards = ["0.3"] * 2000, []
    for num, gradient in [(1, False), (4, False), (16, False), (4, True)]:
        found = search(
            toy=LinearGaussian(), num=num, gradient=gradient, conditions=conditions, noise=BulkNoise(1, 2000),
            reward=Linear((1.0, 1.0)),
        )  # fmt: skip
        rewards.append(float(found.reward.mean()))
    assert rewards[0] + 0.2 < rewards[1] < rewards[2] - 0.1
    assert rewards[1] + 0.05 < rewards[3]


def test_a_hard_constraint_is_a_weight_of_zero() -> None:
    """r = -inf outside: such a trajectory stays in the count with weight 0, and on the way the value is finite."""
    toy, edge = LinearGaussian(steps=3), 0.1
    runs = [
        search(toy=toy, reward=HalfSpace(edge), num=num, conditions=["0.3"] * MANY, noise=BulkNoise(3, MANY))
        for num in (1, 2)
    ]
    for found in runs:
        outside = found.sample[:, 0] >= edge
        assert found.log_weight is not None and len(found.log_weight) == MANY
        assert not found.log_weight.isnan().any()
        assert 100 < outside.sum() < MANY - 100
        assert torch.equal(found.log_weight.isneginf(), outside)
        assert torch.equal(found.reward.isneginf(), outside)
        assert (found.ess >= 0).all() and (found.ess <= 2 + 1e-6).all()
    # with one candidate the values on the way cancel, and the mean weight is the anchor's mass inside
    mean, variance = toy.law("0.3")
    inside = float(Normal(mean[0], variance**0.5).cdf(torch.tensor(edge)))
    assert runs[0].log_weight is not None
    w = runs[0].log_weight.exp()
    assert abs(w.mean() - inside) < 4 * w.std() / MANY**0.5


def test_a_constant_reward_changes_no_law() -> None:
    toy = LinearGaussian(steps=3).shifted(0.4)
    found = search(
        toy=toy, reward=Linear((0.0, 0.0), offset=2.0), gradient=True, conditions=["0.3"] * MANY,
        noise=BulkNoise(1, MANY),
    )  # fmt: skip
    mean, variance = toy.law("0.3")
    x = found.sample.double()
    assert found.log_weight is not None

    torch.testing.assert_close(found.log_weight, torch.full_like(found.log_weight, 2.0 / ALPHA), rtol=0, atol=1e-9)
    assert ((x.mean(0) - mean).abs() < 4 * (variance / MANY) ** 0.5).all()
    assert ((x.var(0) / variance - 1).abs() < 4 * (2 / MANY) ** 0.5).all()
    torch.testing.assert_close(found.ess, torch.full_like(found.ess, 4.0))


def test_one_candidate_weighs_exp_of_its_reward() -> None:
    """Without tilt and with the current anchor every V on the way cancels."""
    found = search(num=1)
    assert found.log_weight is not None

    torch.testing.assert_close(found.log_weight, found.reward / ALPHA, rtol=1e-12, atol=1e-12)
    assert found.ess.tolist() == [1.0] * len(CONDITIONS)


# ---- invariances ----


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("shift", [4.0, -1024.0])
def test_a_constant_added_to_every_reward_changes_no_choice(gradient: bool, shift: float) -> None:
    """-1024 makes all of them negative. log W moves by the constant's own share."""
    plain, moved = search(gradient=gradient), search(gradient=gradient, reward=Bowl(shift))
    assert plain.log_weight is not None and moved.log_weight is not None

    assert (moved.reward < 0).all() == (shift < 0)
    torch.testing.assert_close(moved.states, plain.states, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(moved.log_weight, plain.log_weight + shift / ALPHA, rtol=1e-5, atol=5e-3)


@pytest.mark.parametrize("gradient, beta", [(False, 0.0), (True, 0.3)])
def test_chunks_change_nothing(gradient: bool, beta: float) -> None:
    whole = search(gradient=gradient, beta=beta)
    halves = [
        search(gradient=gradient, beta=beta, conditions=CONDITIONS[a : a + 3], noise=KeyedNoise(5, 2, range(a, a + 3)))
        for a in (0, 3)
    ]
    torch.testing.assert_close(torch.cat([h.states for h in halves], 1), whole.states, rtol=1e-6, atol=1e-6)
    for field in ("sample", "reward", "log_weight", "ess"):
        parts = torch.cat([getattr(h, field) for h in halves])
        torch.testing.assert_close(parts, getattr(whole, field), rtol=1e-5, atol=1e-5)
    assert halves[0].cost + halves[1].cost == whole.cost


@pytest.mark.parametrize(
    "config",
    [
        SearchConfig(kind="dav", candidates=3, alpha=ALPHA, gradient=True, anchor="geometric(0.3)"),
        SearchConfig(kind="best_of_n", candidates=3),
        SearchConfig(kind="none"),
    ],
    ids=lambda config: config.kind,
)
def test_the_same_noise_gives_the_same_bits_also_after_pickling(config: SearchConfig) -> None:
    first = strategy(config)
    again = pickle.loads(pickle.dumps(first))
    runs = [
        run(LinearGaussian().shifted(0.8), scorer(Bowl()), CONDITIONS, KeyedNoise(seed, 2, range(6)))
        for run, seed in ((first, 5), (again, 5), (again, 6))
    ]
    assert torch.equal(runs[0].states, runs[1].states)
    assert torch.equal(runs[0].reward, runs[1].reward)
    if runs[0].log_weight is not None:
        assert torch.equal(runs[0].log_weight, runs[1].log_weight)
    assert not torch.equal(runs[0].states[-1], runs[2].states[-1])


def test_the_configuration_reaches_the_strategy() -> None:
    dav = strategy(SearchConfig(candidates=3, alpha=0.1, gamma=0.8, gradient=True, anchor="geometric(0.25)"))
    best = strategy(SearchConfig(kind="best_of_n", candidates=5))

    assert dav == Dav(candidates=3, alpha=0.1, gamma=0.8, gradient=True, beta=0.25)
    assert isinstance(best, BestOfN) and best.num == 5


# ---- targets that carry all candidates ----


def test_blending_moves_no_state_and_keeps_the_step_without_variance() -> None:
    toy = LinearGaussian(steps=3, last_alpha=1.0).shifted(0.8)
    noise = KeyedNoise(5, 2, range(6))
    plain, blended = (
        Dav(4, ALPHA, GAMMA, True, 0.3, blend)(toy, scorer(Bowl()), CONDITIONS, noise) for blend in (False, True)
    )

    assert plain.targets is None and blended.targets is not None
    assert torch.equal(blended.states, plain.states)
    assert blended.targets.shape == (3, 6, 2)
    assert torch.equal(blended.targets[2], blended.states[3])


def test_a_blend_has_the_winners_mean_and_less_noise() -> None:
    """What the M-step fits at x_T, where the parents are alike: the gradient is linear in it, so means must agree."""
    toy, gaps, noises = LinearGaussian(steps=2).shifted(0.8), [], []
    found = Dav(4, ALPHA, GAMMA, True, 0.0, True)(toy, scorer(Bowl()), ["0.3"] * MANY, BulkNoise(2, MANY))
    assert found.targets is not None
    x_t = found.states[0]
    for outcome in (found.targets[0], found.states[1]):
        residual = (outcome - toy.predict(x_t, 2, ["0.3"] * MANY).kernel.mean).detach().double()
        gaps.append(residual.mean(0))
        noises.append(residual.std(0))

    assert (gaps[0] - gaps[1]).abs().max() < 4 * float(
        (noises[0].square() + noises[1].square()).sqrt().max()
    ) / MANY**0.5
    assert gaps[1].abs().min() > 0.05
    assert (noises[0] < 0.6 * noises[1]).all()


# ---- cost ----


class Counting:
    """A scorer that counts the samples it was asked about."""

    def __init__(self) -> None:
        self._scorer, self.calls = scorer(Bowl()), 0

    def score(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        self.calls += len(samples)
        return self._scorer.score(samples, conditions)

    def score_each(self, samples: Tensor, conditions: Sequence[str]) -> tuple[Tensor, Tensor]:
        self.calls += len(samples)
        return self._scorer.score_each(samples, conditions)

    def score_and_grad(self, samples: Tensor, conditions: Sequence[str]) -> tuple[Tensor, Tensor]:
        self.calls += len(samples)
        return self._scorer.score_and_grad(samples, conditions)


@pytest.mark.parametrize(
    "num, gradient, beta, last_alpha, expected",
    [
        (16, False, 0.0, 0.97, Cost(network=785, reward=50 * 16)),
        (4, True, 0.0, 0.97, Cost(network=246, backward=50, reward=50 * 4 + 50)),
        (4, True, 0.0, 1.0, Cost(network=245, backward=49, reward=49 * 4 + 1 + 49)),
        (16, False, 0.0, 1.0, Cost(network=785, reward=49 * 16 + 1)),
        (16, False, 1.0, 0.97, Cost(network=785, reference=50, reward=50 * 16)),
        (4, True, 0.3, 0.97, Cost(network=246, backward=50, reference=50, reward=50 * 4 + 50)),
        (4, True, 0.3, 1.0, Cost(network=245, backward=49, reference=49, reward=49 * 4 + 1 + 49)),
        (1, False, 0.0, 0.97, Cost(network=50, reward=50)),
    ],
)
def test_evaluations_per_trajectory(num: int, gradient: bool, beta: float, last_alpha: float, expected: Cost) -> None:
    toy, counting = LinearGaussian(steps=50, last_alpha=last_alpha), Counting()
    dav = Dav(num, ALPHA, GAMMA, gradient, beta)
    for _ in range(2):  # what an earlier chunk cost is not counted again
        before, calls = toy.cost, counting.calls
        found = dav(toy, counting, ["0.3"], KeyedNoise(0, 1, [0]))
        assert found.cost == expected
        assert toy.cost - before == found.cost - Cost(reward=expected.reward)
        assert counting.calls - calls == expected.reward


def test_evaluations_of_a_chunk_are_those_of_its_trajectories() -> None:
    found = search(toy=LinearGaussian(steps=50), num=16)
    assert found.cost == Cost(network=6 * 785, reward=6 * 800)


class Watched(LinearGaussian):
    """Knows how many of its predictions are alive when it makes another."""

    def __init__(self, steps: int) -> None:
        super().__init__(steps=steps)
        self._made: list[weakref.ref[Prediction]] = []
        self.alive: list[int] = []

    def predict(self, *args: Any, **words: Any) -> Prediction:
        self.alive.append(sum(made() is not None for made in self._made))
        prediction = super().predict(*args, **words)
        self._made.append(weakref.ref(prediction))
        return prediction


@pytest.mark.parametrize("gradient", [False, True])
def test_nothing_of_past_steps_is_kept_but_states(gradient: bool) -> None:
    """However long the trajectory, what was predicted is held until the next choice."""
    toy = Watched(steps=30)
    found = search(toy=toy, gradient=gradient)

    assert len(toy.alive) >= 30 and max(toy.alive) <= 2
    assert found.states.shape[0] == 31 and found.targets is None


# ---- the strategies without search ----


def test_best_of_n_keeps_the_best_of_its_own_candidates() -> None:
    toy, counting = LinearGaussian(steps=5), Counting()
    noise = KeyedNoise(5, 2, range(6))
    found = BestOfN(4)(toy, counting, CONDITIONS, noise)
    plain = NoSearch(ALPHA, 0.0)(
        LinearGaussian(steps=5), scorer(Bowl()), [c for c in CONDITIONS for _ in range(4)], noise.copies(4)
    )
    rewards = plain.reward.reshape(6, 4)
    winners = torch.arange(6) * 4 + rewards.argmax(1)

    assert found.cost == Cost(network=6 * 4 * 5, reward=24) and counting.calls == 24
    assert torch.equal(found.reward, rewards.amax(1))
    assert torch.equal(found.states, plain.states[:, winners])
    assert torch.equal(found.sample, found.states[-1])
    assert found.log_weight is None
    assert len(set(rewards.argmax(1).tolist())) > 1


def test_no_search_weighs_for_the_current_anchor_alone() -> None:
    found = [
        NoSearch(ALPHA, beta)(LinearGaussian(steps=5), scorer(Bowl()), CONDITIONS, KeyedNoise(5, 2, range(6)))
        for beta in (0.0, 1.0)
    ]
    assert found[0].log_weight is not None and torch.equal(found[0].log_weight, found[0].reward / ALPHA)
    assert found[1].log_weight is None
    assert found[0].cost == Cost(network=30, reward=6)


def test_gradients_in_pieces_are_those_of_all_states_at_once() -> None:
    """As they are taken once memory ran out; the reward is asked piece by piece too."""
    toy = LinearGaussian().shifted(0.8)
    toy.graphs = Room(2)
    whole, pieces = search(gradient=True), search(gradient=True, toy=toy)
    torch.testing.assert_close(pieces.states, whole.states)
    torch.testing.assert_close(pieces.log_weight, whole.log_weight)
    assert pieces.cost == whole.cost
    toy.graphs = Room(10, told=lambda *_: None)
    wide = toy.predict

    def narrow(x: Tensor, *rest: Any, **options: Any) -> Prediction:
        found = wide(x, *rest, **options)
        if torch.is_grad_enabled() and len(x) > 2:  # after it was counted
            raise torch.OutOfMemoryError
        return found

    toy.predict = narrow
    again = search(gradient=True, toy=toy)
    assert toy.graphs.limit <= 2 and again.cost == whole.cost
    torch.testing.assert_close(again.log_weight, whole.log_weight)
