"""The masked model: its sampler's law, its M-step's loss, what the network is given, gradients."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dav_ray.diffusion.base import Prediction
from dav_ray.diffusion.masked.elbo import TIME_MIN, antithetic_times
from dav_ray.diffusion.masked.kernel import END, NEVER
from dav_ray.diffusion.masked.model import MaskedDiffusion
from dav_ray.diffusion.noise import KeyedNoise
from dav_ray.diffusion.sampling import ancestral
from dav_ray.rewards.sequence import GcContent
from dav_ray.search.base import Search
from dav_ray.search.best_of_n import BestOfN
from dav_ray.search.dav import Dav
from dav_ray.testing.base import BulkNoise, scorer
from dav_ray.testing.enumerable import (
    INDEX,
    LENGTH,
    LETTERS,
    MASK,
    SEQUENCES,
    STATES,
    Scores,
    frequencies,
    law,
    letters,
    matrices,
    model,
    unmask,
)
from dav_ray.types import Cost, Transitions
from tests.support.dilated import DNA, PLACES, T, close, cnn, log_p, tokens

# ---- laws ----


@pytest.mark.parametrize("steps", [2, 4])
def test_the_samplers_law(steps: int) -> None:
    diffusion, many = model(moved=0.5, steps=steps), 40_000
    x_0 = ancestral(diffusion, [""] * many, BulkNoise(0, many))[-1]
    expected = law(diffusion)

    assert float(expected.sum()) == pytest.approx(1, abs=1e-9)
    found = frequencies(diffusion.decode(x_0, [""] * many))
    assert ((found - expected).abs() < 4.5 * (expected * (1 - expected) / many).sqrt()).all()


def test_log_probs() -> None:
    """The mask's column is -1e6, an unmasked position one-hot, a masked one the table's own softmax."""
    diffusion, x = model(moved=0.5), torch.tensor(STATES)
    found = diffusion.log_probs(x).detach()
    masked = x == MASK

    assert (found[..., MASK] <= NEVER).all()
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(256, LENGTH))
    expected = torch.tensor(letters(diffusion))
    torch.testing.assert_close(found[masked][:, :LETTERS].exp(), expected[masked].float(), rtol=1e-5, atol=1e-7)
    carried = found[~masked].gather(-1, x[~masked].unsqueeze(-1))
    assert (carried == 0).all() and ((found[~masked] == 0).sum(-1) == 1).all()


def transitions(num: int = 60) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]], Tensor]:
    """Possible steps of all kinds: states, what comes after, and t."""
    generator = torch.Generator().manual_seed(3)
    states, afters = [], []
    for i in torch.randint(0, 256, (num,), generator=generator).tolist():
        drawn = torch.randint(0, LETTERS + 1, (LENGTH,), generator=generator).tolist()
        states.append(STATES[i])
        afters.append(tuple(d if c == MASK else c for c, d in zip(STATES[i], drawn, strict=True)))
    return states, afters, torch.randint(1, 5, (num,), generator=generator)


def test_step_loss_is_the_enumerated_one() -> None:
    """nll: -log p(after | state) without the schedule's share; kl: over all successors of the state."""
    diffusion, (states, afters, t) = model(moved=0.6), transitions()
    policy, reference, p = matrices(diffusion), matrices(diffusion, beta=1.0), letters(diffusion)
    batch = Transitions(torch.tensor(states), torch.tensor(afters, dtype=torch.uint8), t, [""] * len(states))
    with torch.no_grad():
        loss = diffusion.step_loss(batch, reference=True)
        bare = diffusion.step_loss(batch, reference=False)

    for i, (state, after, step) in enumerate(zip(states, afters, t.tolist(), strict=True)):
        row, other = policy[4 - step][INDEX[state]], reference[4 - step][INDEX[state]]
        gone = sum(a != b for a, b in zip(state, after, strict=True))
        schedule = gone * math.log(unmask(step)) + after.count(MASK) * math.log1p(-unmask(step))
        assert float(loss.nll[i]) == pytest.approx(schedule - math.log(row[INDEX[after]]), abs=1e-5)
        by_hand = [-math.log(p[INDEX[state]][k][v]) for k, v in enumerate(after) if state[k] == MASK != v]
        assert float(loss.nll[i]) == pytest.approx(sum(by_hand), abs=1e-5)
        kl = torch.where(row > 0, row * (row / other).log(), 0.0).sum()
        assert float(loss.kl[i]) == pytest.approx(float(kl), abs=1e-5)
    assert torch.equal(bare.nll, loss.nll) and bare.kl.tolist() == [0.0] * len(states)
    assert loss.nll.max() > 1 and loss.kl.max() > 0.1


def test_the_gradient_of_step_loss() -> None:
    """By a step's logits: p - onehot(letter) where one was unmasked, and unmask p (log p/q - KL) at every mask."""
    diffusion, (states, afters, t) = model(moved=0.6), transitions(30)
    batch = Transitions(torch.tensor(states), torch.tensor(afters), t, [""] * len(states))
    loss = diffusion.step_loss(batch, reference=True)
    (grad,) = torch.autograd.grad((loss.nll + 0.7 * loss.kl).sum(), diffusion.trainable().linear)

    policy, reference = torch.tensor(letters(diffusion)), torch.tensor(letters(diffusion, reference=True))
    expected = torch.zeros(256, LENGTH, LETTERS + 1, dtype=torch.float64)
    for state, after, step in zip(states, afters, t.tolist(), strict=True):
        for place in range(LENGTH):
            if state[place] != MASK:
                continue
            p, q = policy[INDEX[state], place].double(), reference[INDEX[state], place].double()
            ratio = (p / q).log()
            expected[INDEX[state], place, :LETTERS] += 0.7 * unmask(step) * p * (ratio - (p * ratio).sum())
            if after[place] != MASK:
                expected[INDEX[state], place, :LETTERS] += p - nn.functional.one_hot(torch.tensor(after[place]), 3)
    torch.testing.assert_close(grad.double(), expected, rtol=1e-4, atol=1e-5)
    assert (expected != 0).sum() > 50


# ---- what the network is given ----


class Recorder(nn.Module):
    """Knows little, and remembers what it was asked."""

    def __init__(self, tokens: int = 5) -> None:
        super().__init__()
        self.linear = nn.Parameter(torch.linspace(-1, 1, tokens))
        self.sigmas: list[Tensor] = []

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        self.sigmas.append(sigma.clone())
        return self.linear.expand(*x.shape[:2], -1)


def recorder(timeless: bool) -> tuple[MaskedDiffusion, Recorder]:
    backbone = Recorder()
    options: dict[str, Any] = {"alphabet": DNA, "length": PLACES, "steps": T}
    return MaskedDiffusion(backbone, time_conditioned=not timeless, **options), backbone


def sigma(time: float) -> float:
    return -math.log(1 - (1 - 1e-3) * time)


@pytest.mark.parametrize("timeless", [True, False])
def test_training_conditions_on_time_as_sampling_does(timeless: bool) -> None:
    diffusion, backbone = recorder(timeless)
    states = ancestral(diffusion, ["", ""], KeyedNoise(0, 1, range(2)))
    sampling = {t: found for t, found in zip(range(T, 0, -1), backbone.sigmas, strict=True)}
    backbone.sigmas.clear()
    t = torch.tensor([2, 5, 1, 4, 3])
    diffusion.step_loss(Transitions(states[T - t, 0], states[T - t + 1, 0], t, [""] * T), reference=True)

    assert len(backbone.sigmas) == 2  # of the pretrained model, and of the policy
    for found in backbone.sigmas:
        assert torch.equal(found, torch.stack([sampling[int(step)][0] for step in t]))
    times = [END + (1 - END) * step / T for step in range(1, T + 1)]
    expected = [0.0] * T if timeless else [sigma(s) for s in times]
    assert [float(sampling[step][0]) for step in range(1, T + 1)] == pytest.approx(expected, rel=1e-6)
    assert diffusion.timeless == timeless


@pytest.mark.parametrize("timeless", [True, False])
def test_clean_up_and_likelihood_have_their_own_times(timeless: bool) -> None:
    diffusion, backbone = recorder(timeless)
    diffusion.decode(torch.full((1, PLACES), 4), [""])
    diffusion.log_probs(torch.full((2, PLACES), 4), time=torch.tensor([0.25, 1.0]))
    diffusion.elbo(torch.zeros((1, PLACES), dtype=torch.int64), [""], KeyedNoise(0, 1, [0]).at(0), draws=4)
    clean, asked, *drawn = [found.tolist() for found in backbone.sigmas]

    if timeless:
        assert clean + asked + sum(drawn, []) == [0.0] * 7
    else:
        assert clean + asked == pytest.approx([sigma(END), sigma(0.25), sigma(1.0)], rel=1e-5)
        times = antithetic_times(KeyedNoise(0, 1, [0]).at(0).uniform(()), 4)[0].tolist()
        assert sum(drawn, []) == pytest.approx([sigma(s) for s in times], rel=1e-6)
        assert [math.floor(4 * (s - TIME_MIN) / (1 - TIME_MIN)) for s in times] == [0, 1, 2, 3]


def test_clean_up_counts_where_a_mask_is_left() -> None:
    diffusion, x = cnn(), tokens(6, masked=0.1)
    x[1], x[4] = x[1] % 4, x[4] % 4
    left = (x == 4).any(1)
    found = diffusion.decode(x, [""] * 6)

    assert diffusion.cost == Cost(network=int(left.sum())) and 2 <= int(left.sum()) <= 4
    best = log_p(diffusion, x, [""] * 6)[..., :4].argmax(-1)
    assert torch.equal(found, torch.where(x == 4, best, x))
    before = diffusion.cost
    assert torch.equal(diffusion.decode(found, [""] * 6), found)
    assert diffusion.cost == before


SEARCHES: list[Search] = [
    Dav(3, 0.2, 0.9, gradient=True, beta=0.5, blend=True),
    Dav(3, 0.2, 0.9, gradient=False, beta=0.0, complete=True),
    BestOfN(3),
]


@pytest.mark.parametrize("search", SEARCHES)
def test_fixed_positions_never_change(search: Search) -> None:
    diffusion, noise = cnn(adapted=True), KeyedNoise(0, 1, range(8))
    conditions = ["fixed=0:AC,5:T", ""] * 4
    found = search(diffusion, scorer(GcContent()), conditions, noise)
    plain = ancestral(diffusion, conditions, noise)

    for states in (found.states, plain, found.sample[None]):
        assert (states[:, ::2][..., [0, 1, 5]] == torch.tensor([0, 1, 3])).all()
    assert (diffusion.prior(conditions, noise.at(T)) == 4).sum(1).tolist() == [9, 12] * 4
    assert (found.sample[1::2][:, [0, 1, 5]] != torch.tensor([0, 1, 3])).any(0).all()
    if found.targets is not None and found.targets.ndim == 4:
        assert (found.targets[:, ::2][:, :, [0, 1, 5]] == 0).all()  # nothing is learned of what was given


def test_guidance_by_hand() -> None:
    """log p is proportional to s log p(. | class) + (1 - s) log p(. | none), none being the index after the last."""
    x, conditions, s = tokens(3), ["class=1", "class=0 fixed=2:A", ""], 2.5
    guided, plain = cnn(classes=2, guidance_scale=s), cnn(classes=2)
    backbone: Any = plain.trainable()
    with torch.no_grad():
        given, free = (
            torch.log_softmax(backbone(x, torch.zeros(3), torch.tensor(label))[..., :4], -1)
            for label in ([1, 0, 2], [2, 2, 2])
        )
    expected = torch.log_softmax(s * given + (1 - s) * free, -1)
    masked = x == 4

    torch.testing.assert_close(log_p(guided, x, conditions)[masked][:, :4], expected[masked], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(log_p(plain, x, conditions)[masked][:, :4], given[masked])
    torch.testing.assert_close(log_p(guided, x, conditions)[2][masked[2]][:, :4], free[2][masked[2]])
    torch.testing.assert_close(plain.log_probs(x)[masked][:, :4], free[masked])
    torch.testing.assert_close(plain.log_probs(x, torch.tensor([1, 0, 2]))[masked][:, :4], given[masked])
    assert (given - free)[:2][masked[:2]].abs().max() > 0.05


def test_no_class_no_guidance() -> None:
    """One network pass where there is nothing to guide by."""
    calls = []
    for classes, scale in ((0, 3.0), (2, 1.0), (2, 3.0)):
        diffusion = cnn(classes=classes, guidance_scale=scale)
        diffusion.trainable().register_forward_hook(lambda *_: calls.append(1))
        diffusion.predict(tokens(2), 1, ["", ""])
        calls.append(0)
    assert calls == [1, 0, 1, 0, 1, 0]


def test_batch_and_micro_batch_change_nothing() -> None:
    options: dict[str, Any] = {"classes": 2, "time_conditioned": True, "adapted": True, "guidance_scale": 2.0}
    whole, pieces = cnn(**options), cnn(**options, micro_batch=2)
    x, t = tokens(5), torch.tensor([1, 5, 2, 5, 3])
    conditions = ["class=0", "", "class=1", "class=0", "fixed=0:A"]
    for reference in (False, True):
        with torch.no_grad():
            one, cut = (m.predict(x, t, conditions, reference=reference) for m in (whole, pieces))
            alone = [
                whole.predict(x[i : i + 1], int(t[i]), conditions[i : i + 1], reference=reference) for i in range(5)
            ]
        for other in (cut, Prediction.join(Prediction.join(alone[0], alone[1]), alone[2])):
            rows = len(other.x0_hat)
            close(other.kernel, one.kernel.take(torch.arange(rows)))
            assert torch.equal(other.x0_hat, one.x0_hat[:rows])
    assert whole.cost == Cost(network=10, reference=10)


def test_probabilities_are_float32_whatever_the_networks_precision() -> None:
    x, conditions = tokens(4), [""] * 4
    low, full = log_p(cnn(autocast="bfloat16"), x, conditions), log_p(cnn(), x, conditions)

    assert low.dtype == torch.float32
    assert 0 < float((low - full).abs().max()) < 0.2
    torch.testing.assert_close(low.exp().sum(-1), torch.ones(4, PLACES), rtol=0, atol=1e-6)


def test_tokens_may_be_bytes() -> None:
    """As files and buffers hold them."""
    diffusion, x, conditions = cnn(), tokens(3), [""] * 3
    small = x.to(torch.uint8)

    assert torch.equal(diffusion.log_probs(small), diffusion.log_probs(x))
    assert torch.equal(diffusion.predict(small, 2, conditions).x0_hat, diffusion.predict(x, 2, conditions).x0_hat)
    assert torch.equal(diffusion.decode(small, conditions), diffusion.decode(x, conditions))
    assert torch.equal(diffusion.relax(small), diffusion.relax(x))
    t = torch.tensor([1, 2, 3])
    batches = [Transitions(states, states % 4, t, conditions) for states in (small, x)]
    losses = [diffusion.step_loss(batch, reference=True) for batch in batches]
    assert torch.equal(losses[0].nll, losses[1].nll) and torch.equal(losses[0].kl, losses[1].kl)


def test_samples_have_a_seed_each() -> None:
    diffusion = cnn(steps=3)
    found = diffusion.sample(5, seed=7)

    assert all(len(text) == PLACES and set(text) <= set("ACGT") for text in found)
    assert len(set(found)) > 1
    assert diffusion.sample(5, seed=7, batch=2) == found
    assert diffusion.sample(3, seed=9) == found[2:]
    assert diffusion.sample(5, seed=8) != found
    infilled = diffusion.sample(4, seed=7, conditions=["", "fixed=3:ACGT"])
    assert infilled[::2] == found[:4:2]
    assert [text[3:7] for text in infilled[1::2]] == ["ACGT", "ACGT"]


# ---- gradients ----


def test_the_gradient_of_a_reward_through_a_relaxed_state() -> None:
    """x0_hat = x_t[v] + x_t[MASK] e(v): e is the most likely letter going forward, its probability going backward.

    So dr/dx_t has r's own slope c at letters, <c, e> at the mask, and d/dx_t of sum_l <c_l, p_l(x_t)> over masked l,
    here by differences of the table's multilinear extension in float64.
    """
    diffusion, reward, step = model(moved=0.5), Scores(), 1e-5
    linear = diffusion.trainable().linear.detach().double()
    for state in [(3, 3, 3, 3), (0, 3, 2, 3), (3, 1, 1, 2)]:
        leaf = diffusion.relax(torch.tensor([state])).requires_grad_()
        x0_hat = diffusion.predict(leaf, 3, [""]).x0_hat
        (grad,) = torch.autograd.grad(reward(x0_hat, [""]).sum(), leaf)

        hard = diffusion.predict(torch.tensor([state]), 3, [""]).x0_hat[0].tolist()
        assert diffusion.harden(x0_hat)[0].tolist() == hard
        swapped = [[tuple(v if k == place else h for k, h in enumerate(hard)) for v in range(3)] for place in range(4)]
        c = torch.tensor([[float(reward.table[SEQUENCES.index(s)]) for s in row] for row in swapped]).double()

        def expected_reward(x: Tensor, state: tuple[int, ...] = state, c: Tensor = c) -> float:
            weight = torch.stack([x[place, torch.tensor(STATES)[:, place]] for place in range(LENGTH)]).prod(0)
            p = torch.softmax(torch.einsum("s,slv->lv", weight, linear)[:, :LETTERS], -1)
            return float((c * p)[[token == MASK for token in state]].sum())

        direct = torch.cat([c, c[range(LENGTH), hard].unsqueeze(1)], 1)
        at = leaf.detach()[0].double()
        for place, v in itertools.product(range(LENGTH), range(LETTERS + 1)):
            nudge = torch.zeros_like(at)
            nudge[place, v] = step
            through = (expected_reward(at + nudge) - expected_reward(at - nudge)) / (2 * step)
            assert float(grad[0, place, v]) == pytest.approx(float(direct[place, v]) + through, rel=1e-3, abs=1e-3)


def test_relaxed_predictions_are_those_of_the_tokens() -> None:
    diffusion, x, conditions = cnn(classes=2, guidance_scale=2.0), tokens(4), ["class=1", "", "class=0", ""]
    with torch.no_grad():
        plain, relaxed = (diffusion.predict(state, 2, conditions) for state in (x, diffusion.relax(x)))

    close(relaxed.kernel, plain.kernel)
    assert diffusion.relax(x).shape == (4, PLACES, 5) and relaxed.x0_hat.shape == (4, PLACES, 4)
    assert torch.equal(diffusion.harden(relaxed.x0_hat), plain.x0_hat)
    assert torch.equal(diffusion.decode(relaxed.x0_hat, conditions), relaxed.x0_hat)
