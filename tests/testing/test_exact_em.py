"""Rounds of EM on models that can be enumerated: exact ones against theory, fitted ones against exact ones."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dav_ray.mstep.objective import weighted_sum
from dav_ray.testing import enumerable as masked
from dav_ray.testing import exact_em as theory
from dav_ray.testing.base import BulkNoise
from dav_ray.testing.chain import START, Foresight, StateScores, TableKernel, TabularChain, chain, likeliest
from dav_ray.testing.enumerable import distance
from dav_ray.types import Transitions
from jobs.validation.em import SampledEM, beta_of, effective, noise

ANCHORS = ("current", "geometric(0.3)", "pretrained")
ALPHA = 0.5
VALUE = StateScores.random(12).table  # r / alpha of the chain's states
REWARD = StateScores(ALPHA * VALUE)


def kernel(rows: int = 2, seed: int = 0) -> TableKernel:
    logits = torch.randn((rows, 5), generator=torch.Generator().manual_seed(seed))
    return TableKernel(torch.log_softmax(logits, -1))


def test_a_kernels_closed_forms() -> None:
    k, other, many = kernel(), kernel(seed=1), 40_000
    p, q = k.log_p.double().exp(), other.log_p.double().exp()
    draws = k.sample(many, BulkNoise(0, 2).at(0))
    shares = torch.nn.functional.one_hot(draws.squeeze(-1), 5).double().mean(1)
    grad = torch.tensor([[1.0, 0, 0, 0, -2], [0, 0, 0, 0, 0]])
    tilted = p * grad.double().exp()
    tilted /= tilted.sum(1, keepdim=True)
    nll = k.nll(torch.tensor([[3], [0]])).double()

    assert draws.shape == (2, many, 1)
    assert ((shares - p).abs() < 4.5 * (p * (1 - p) / many).sqrt()).all()
    assert torch.equal(k.log_prob(draws)[1, :9], k.log_p.double()[1, draws[1, :9, 0]])
    torch.testing.assert_close(nll, -torch.stack([p[0, 3], p[1, 0]]).log(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(k.kl(other).double(), (p * (p / q).log()).sum(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(k.tilt(grad).log_p.double().exp(), tilted, rtol=1e-6, atol=1e-6)
    assert torch.equal(k.join(other).take(torch.tensor([3, 0])).log_p, torch.stack([other.log_p[1], k.log_p[0]]))


def test_a_blend_stands_for_all_candidates() -> None:
    """nll(blend) = sum_m w_m nll(x_m) - (mean_m nll(x_m) - E nll): the last part is noise of mean zero."""
    k = kernel()
    candidates = torch.tensor([[[0], [3], [3]], [[2], [1], [4]]])
    weights = torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]], dtype=torch.float64)
    shares = k.blend(candidates, weights)
    nll = -k.log_prob(candidates)
    mean = -(k.log_p.double().exp() * k.log_p.double()).sum(1)
    expected = (weights * nll).sum(1) - nll.mean(1) + mean

    torch.testing.assert_close(k.nll(shares).double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(shares.sum(1), torch.ones(2))


def test_the_chain_is_exact_and_guesses_by_bayes() -> None:
    """Its law is its data's; its guesses are those of all paths, one by one."""
    model, data = chain(4, 3, seed=1)
    torch.testing.assert_close(theory.law(model.matrices(), START), data, rtol=0, atol=1e-6)
    k3, k2, k1 = model.matrices()
    for t, kernels in ((1, [k1]), (2, [k2, k1]), (3, [k3, k2, k1])):
        for x in range(4):
            mass = torch.zeros(4, dtype=torch.float64)
            for path in itertools.product(range(4), repeat=t):
                steps = zip(kernels, (x, *path), path, strict=False)
                mass[path[-1]] += math.prod(float(k[a, b]) for k, a, b in steps)
            found = model.predict(torch.tensor([[x]]), t, [""])
            assert int(found.x0_hat) == int(mass.argmax())
            torch.testing.assert_close(found.kernel.log_prob(torch.arange(4).reshape(1, 4, 1)).exp()[0], kernels[0][x])
    assert model.cost.network == 12 and model.cost.reference == 0


# ---- exact rounds ----


def test_an_exact_round_is_that_of_all_paths() -> None:
    """anchor(tau) exp(r) over its sum, path by path; its kernels have that law and log h_T is log Z."""
    model, value, beta = chain(3, 3)[0], torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64), 0.3
    pretrained, policy = model.matrices(), chain(3, 3, seed=5)[0].matrices()
    fitted = theory.em_round(policy, pretrained, value, beta)
    masses, found = [], []
    for path in itertools.product(range(3), repeat=3):
        moves = list(zip(range(3), (START, *path), path, strict=False))
        p, p0, q = (math.prod(float(k[t][a, b]) for t, a, b in moves) for k in (policy, pretrained, fitted))
        masses.append(p ** (1 - beta) * p0**beta * math.exp(float(value[path[-1]])))
        found.append(q)

    assert found == pytest.approx([mass / sum(masses) for mass in masses], abs=1e-12)
    h = theory.log_h(theory.anchor(policy, pretrained, beta), value)
    assert float(h[-1, START]) == pytest.approx(math.log(sum(masses)), abs=1e-12)


def free_kernels(kind: str) -> tuple[list[Tensor], Tensor, int]:
    """Kernels, r / alpha and x_T: of the chain, or of the masked model as one of 256 joint states."""
    if kind == "chain":
        return chain()[0].matrices(), VALUE, START
    diffusion = masked.model()
    value = masked.Scores().table.double()[masked.completions(diffusion)] / 2
    return masked.matrices(diffusion), value, masked.INDEX[(masked.MASK,) * masked.LENGTH]


@pytest.mark.parametrize("kind", ["chain", "masked"])
@pytest.mark.parametrize("name", ANCHORS)
def test_exact_rounds_reach_the_laws_of_theory(name: str, kind: str) -> None:
    """p_0 exp(c_k r / alpha): c_k = k, 1, or up to 1 / beta at the rate 1 - beta."""
    pretrained, value, start = free_kernels(kind)
    beta, policy, first = beta_of(name), pretrained, theory.law(pretrained, start)
    expected = {"current": lambda k: k, "pretrained": lambda k: 1.0}.get(name, lambda k: (1 - 0.7**k) / 0.3)
    for k in range(1, 5):
        policy = theory.em_round(policy, pretrained, value, beta)
        assert theory.exponent(k, beta) == pytest.approx(expected(k), rel=1e-12)
        found, tilted = theory.law(policy, start), theory.tilt(first, expected(k) * value)
        torch.testing.assert_close(found, tilted, rtol=0, atol=1e-10)


def test_the_current_anchor_collapses_and_lambda_holds_it() -> None:
    """With lambda the rounds end where K is in proportion to K_0 exp(h_{t-1} / (lambda h_t))."""
    pretrained = chain()[0].matrices()
    policy, held, entropies, gaps = pretrained, pretrained, [], []
    for _ in range(20):
        policy = theory.em_round(policy, pretrained, VALUE, 0.0)
        held = theory.em_round(held, pretrained, VALUE, 0.0, kl=1.0)
        entropies.append(theory.entropy(theory.law(policy, START)))
        h = theory.log_h(held, VALUE).exp().flip(0)  # t = T first
        fixed = torch.softmax(torch.stack(pretrained).log() + h[1:].unsqueeze(1) / h[:-1].unsqueeze(2), -1)
        gaps.append(float((torch.stack(held) - fixed).abs().max()))

    assert all(a > b for a, b in itertools.pairwise(entropies))
    assert entropies[-1] < 1e-4 < 1.5 < theory.entropy(theory.law(held, START))
    assert gaps[0] > 0.1 and gaps[-1] < 1e-5


@pytest.mark.parametrize("kl", [0.01, 0.3, 4.0])
def test_the_m_step_with_lambda_stands_still_where_the_closed_form_is(kl: float) -> None:
    """The production objective at the regularised kernels, fed every outcome with its share: no gradient is left,
    however much each state weighs."""
    model, weights = chain()[0], torch.linspace(0.5, 2, 60)
    fitted, pretrained = theory.em_round(model.matrices(), model.matrices(), VALUE, 0.0), model.matrices(reference=True)
    model.load([theory.regularised(k, k0, kl) for k, k0 in zip(fitted, pretrained, strict=True)])
    x, t = torch.arange(12).repeat(5).unsqueeze(1), torch.arange(5, 0, -1).repeat_interleave(12)
    batch = Transitions(x, torch.cat(fitted).float(), t, [""] * 60)
    loss = weighted_sum(model.step_loss(batch, reference=True), weights, kl)
    (grad,) = torch.autograd.grad(loss, model.trainable().logits)  # type: ignore[arg-type]
    start = weighted_sum(chain()[0].step_loss(batch, reference=True), weights, kl)

    assert float(grad.abs().max()) < 2e-5
    assert float((start - loss).detach()) > 0.1


# ---- rounds by sampling and gradient ----

MANY, SLACK = 8_000, 0.005  # SLACK: what the optimizer leaves


def sampled(name: str, weighted: bool, kl: float = 0.0, rounds: int = 3) -> list[tuple[float, float, float, float]]:
    """By round: TV to the exact laws; TV to an exact round from the last fit, the most that noise explains of it (4
    standard deviations); TV to the same round of a search with M = 2 whose weights are dropped."""
    model = chain()[0]
    pretrained = exact = model.matrices(reference=True)
    em, beta, out = SampledEM(model, REWARD, ALPHA, name, 2, MANY, weighted, kl, 0, 40, 0.2), beta_of(name), []
    for number in range(1, rounds + 1):
        policy = model.matrices()
        exact = theory.em_round(exact, pretrained, VALUE, beta, kl)
        once = theory.law(theory.em_round(policy, pretrained, VALUE, beta, kl), START)
        blind = theory.law(theory.unweighted_round(policy, pretrained, VALUE[likeliest(policy)], beta, 2), START)
        found, weights = em.round(number)
        fitted = theory.law(model.matrices(), START)
        mean, sd = noise(once, found.sample.squeeze(1), weights)
        gaps = (distance(fitted, theory.law(exact, START)), distance(fitted, once), mean + 4 * sd + SLACK)
        out.append((*gaps, distance(fitted, blind)))
    return out


@pytest.mark.parametrize("name", ANCHORS)
def test_weighted_rounds_follow_exact_em(name: str) -> None:
    """Each round is an exact one but for noise; over rounds the errors add up."""
    allowed = 0.0
    for total, once, most, _ in sampled(name, True):
        allowed += most
        assert once < most < 0.05 and total < allowed


@pytest.mark.thorough
def test_rounds_without_weights_are_biased_as_enumerated() -> None:
    """The paper's W = 1 at M = 2: far from exact EM, and where the law of the search says."""
    for total, once, most, blind in sampled("current", False):
        assert blind < most
        assert total > 2 * most and once > 1.5 * most


def test_rounds_with_lambda_follow_exact_ones() -> None:
    for total, once, most, _ in sampled("current", True, kl=1.0, rounds=2):
        assert total < most and once < most


def masked_goal(weighted: bool) -> Any:
    """The masked model after an exact round, trajectories weighted or as a search with M = 2 accepts them."""
    goal, value = masked.model(), masked.Scores().table.double()
    policy, reached = masked.matrices(goal), value[masked.completions(goal)]
    blind = theory.unweighted_round(policy, policy, reached.expand(masked.STEPS + 1, -1), 0.0, 2)
    before = torch.tensor(masked.letters(goal), dtype=torch.float64)
    theory.set_letters(goal, theory.projection(theory.posterior(policy, reached) if weighted else blind, before))
    return goal


@pytest.mark.thorough
@pytest.mark.parametrize("weighted", [True, False])
def test_a_factorised_model_reaches_the_projection(weighted: bool) -> None:
    """Letters at the all-masked state, and the law; with weights that of the tilted law, without them another."""
    many, goals = 6000, {kind: masked_goal(kind) for kind in (True, False)}
    model: Any = masked.model(micro_batch=many * masked.STEPS)
    em = SampledEM(model, masked.Scores(), 1.0, "current", 2, many, weighted, epochs=25, learning_rate=0.3)
    found, weights = em.round(1)
    all_masked = masked.INDEX[(masked.MASK,) * masked.LENGTH]
    p, q = (torch.tensor(masked.letters(m)[all_masked], dtype=torch.float64) for m in (goals[weighted], model))
    used = weights.unsqueeze(1) * (found.states[1] != masked.MASK)  # [N, L]
    hit = torch.nn.functional.one_hot(found.states[1], 4)[..., :3]
    error = (used.unsqueeze(-1) * (hit - p)).square().sum(0).sqrt() / used.sum(0).unsqueeze(-1)
    right, other = (masked.law(goals[kind]) for kind in (weighted, not weighted))
    mean, sd = noise(right, masked.sequence_index(found.sample), weights)

    assert ((q - p).abs() < 4.5 * error + SLACK).all()
    assert distance(masked.law(model), right) < mean + 4 * sd + SLACK
    assert distance(masked.law(model), other) > 1.5 * (mean + 4 * sd + SLACK)


# ---- the bound ----


@pytest.mark.thorough
@pytest.mark.parametrize("knows", [False, True])
def test_the_bound_is_that_of_enumeration(knows: bool) -> None:
    """E[log W] and E[W] = Z at every M; with exact soft values the bound closes like 1 / M, with guesses it ends below
    log Z."""
    plain, many, gaps = chain()[0], 10_000, []
    kernels = plain.matrices()
    h = theory.log_h(kernels, VALUE)
    values, log_z = h if knows else VALUE[likeliest(kernels)], float(h[-1, START])
    model, reward = (Foresight(kernels), StateScores(ALPHA * h.flatten())) if knows else (plain, REWARD)
    for candidates in (1, 2, 8, 32):
        log_w = SampledEM(model, reward, ALPHA, "current", candidates, many, True).search(candidates).log_weight
        assert log_w is not None
        w = (log_w - log_z).exp()
        expected = theory.bound(kernels, kernels, values, candidates, START)
        gaps.append(log_z - expected)
        assert abs(float(log_w.mean()) - expected) < 4 * float(log_w.std()) / many**0.5
        assert abs(float(w.mean()) - 1) < 4 * float(w.std()) / many**0.5
        assert log_w.mean() < log_z
    limit = log_z - theory.bound(kernels, kernels, values, math.inf, START)
    assert all(a > b for a, b in itertools.pairwise([*gaps, limit]))
    if knows:
        assert limit == pytest.approx(0, abs=1e-9)
        assert gaps[3] * 32 == pytest.approx(gaps[2] * 8, rel=0.05)
    else:
        assert limit > 0.2


@pytest.mark.parametrize("knows, candidates", [(False, 1), (True, 6)])
def test_at_the_posterior_every_trajectory_weighs_z(knows: bool, candidates: int) -> None:
    """With one candidate whatever the values, with more if they are exact: then all weigh alike at every step."""
    pretrained = chain()[0].matrices()
    h = theory.log_h(pretrained, VALUE)
    model = (Foresight if knows else TabularChain)(pretrained).load(theory.posterior(pretrained, VALUE))
    reward = StateScores(ALPHA * h.flatten()) if knows else REWARD
    found = SampledEM(model, reward, ALPHA, "pretrained", candidates, 300, True).search(1)
    assert found.step_ess is not None and found.log_weight is not None

    alike = torch.full((5, 300), float(candidates), dtype=torch.float64)
    torch.testing.assert_close(found.step_ess, alike, rtol=1e-8, atol=0)
    expected = torch.full_like(found.log_weight, float(h[-1, START]))
    torch.testing.assert_close(found.log_weight, expected, rtol=0, atol=1e-5)


@pytest.mark.thorough
def test_rounds_close_the_bound() -> None:
    """Anchor `pretrained`, so that log Z stays. After one M-step the gap is what a fit of n free numbers to the draws
    leaves, n / (2 ESS), and enumeration says the same."""
    model, many, sizes, gaps = chain()[0], 16_000, [], []
    pretrained = model.matrices()
    log_z = float(theory.log_h(pretrained, VALUE)[-1, START])
    em = SampledEM(model, REWARD, ALPHA, "pretrained", 1, many, True, epochs=40, learning_rate=0.2)
    for number in (1, 2):
        policy = model.matrices()
        found, weights = em.round(number)
        assert found.log_weight is not None
        expected = theory.bound(policy, pretrained, VALUE[likeliest(policy)], 1, START)
        gaps.append(log_z - expected)
        sizes.append(effective(weights))
        assert abs(float(found.log_weight.mean()) - expected) < 4 * float(found.log_weight.std()) / many**0.5
    free = 11 * (1 + 4 * 12)  # the kernel of x_T's one state, and 12 rows at each later step
    assert gaps[0] > 0.28
    assert gaps[1] == pytest.approx(free / (2 * sizes[0]), rel=0.3)
    assert sizes[0] < 0.75 * many < 0.9 * many < sizes[1]
