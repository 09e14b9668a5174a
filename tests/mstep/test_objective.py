"""The M-step's objective against its closed form on the toy, whose policy is a shift of every step's mean."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor

from dav_ray.mstep.objective import Rows, accumulate, batches, weighted_sum
from dav_ray.testing.gaussian import LinearGaussian
from dav_ray.types import StepLoss

T, D, N = 4, 2, 5
LAMBDA = 0.3
CONDITIONS = ("0.3", "-0.5", "0.3", "1.0", "0.0")


def rows(targets: bool = False) -> Rows:
    generator = torch.Generator().manual_seed(0)
    return Rows(
        torch.randn((N, T + 1, D), generator=generator),
        torch.randn((N, T, D), generator=generator) if targets else None,
        CONDITIONS,
        torch.tensor([0.5, 2.0, 0.0, 1.5, 1.0], dtype=torch.float64),
        torch.ones(N, dtype=torch.bool),
    )


def everything() -> tuple[Tensor, Tensor]:
    """All pairs (row, t)."""
    return torch.arange(N).repeat_interleave(T), torch.arange(1, T + 1).repeat(N)


def gradient(
    toy: LinearGaussian, data: Rows, micro_batch: int = 100, kl: float = LAMBDA
) -> tuple[Tensor, tuple[float, float]]:
    """Of the objective: T times the mean over transitions is the mean over rows of the sum over steps."""
    toy.trainable().zero_grad()
    nll, kld = accumulate(toy, data, *everything(), kl=kl, scale=1 / N, micro_batch=micro_batch)
    assert toy.shift.grad is not None
    return toy.shift.grad.clone(), (float(nll), float(kld))


def closed_form(toy: LinearGaussian, data: Rows, kl: float) -> tuple[Tensor, float, float]:
    """Gradient [T+1, D], sum of W nll and sum of W KL, term by term: with residual e = x_{t-1} - mu_0 - shift,
    nll = |e|^2 / (2 s^2) + D log(s sqrt(2 pi)), KL = |shift|^2 / (2 s^2)."""
    grad, nll, kld = torch.zeros(T + 1, D, dtype=torch.float64), 0.0, 0.0
    shift = toy.shift.detach().double()
    for i, w in enumerate(data.weights.tolist()):
        for t in range(1, T + 1):
            var = float(toy.schedule.std[t]) ** 2
            if var == 0:
                continue
            x_t = data.states[i, T - t]
            x_prev = data.states[i, T - t + 1] if data.targets is None else data.targets[i, T - t]
            base = toy.predict(x_t[None], t, [data.conditions[i]], reference=True).kernel.mean[0].double()
            e = x_prev.double() - base - shift[t]
            grad[t] += w * (-e + kl * shift[t]) / var / N
            nll += w * float(e.square().sum() / (2 * var) + D * 0.5 * torch.log(torch.tensor(2 * torch.pi * var)))
            kld += w * float(shift[t].square().sum() / (2 * var))
    return grad, nll, kld


@pytest.mark.parametrize("targets", [False, True])
@pytest.mark.parametrize("last_alpha", [0.97, 1.0])
def test_gradient_and_sums_are_the_closed_form(last_alpha: float, targets: bool) -> None:
    toy, data = LinearGaussian(T, D, last_alpha=last_alpha).shifted(0.5), rows(targets)
    grad, sums = gradient(toy, data)
    expected, nll, kl = closed_form(toy, data, LAMBDA)

    torch.testing.assert_close(grad.double(), expected, rtol=1e-4, atol=1e-4)
    assert sums == pytest.approx((nll, kl), rel=1e-4)
    # a step without variance has no likelihood: nothing is learned there
    assert (grad[1] == 0).all() == (last_alpha == 1.0)
    assert (grad[2:] != 0).all()


def test_without_kl_the_reference_is_not_evaluated() -> None:
    toy, data = LinearGaussian(T, D).shifted(0.5), rows()
    grad, sums = gradient(toy, data, kl=0.0)

    assert toy.cost.reference == 0
    assert sums[1] == 0.0
    torch.testing.assert_close(grad.double(), closed_form(toy, data, 0.0)[0], rtol=1e-4, atol=1e-4)


def test_the_gradient_is_linear_in_the_weights() -> None:
    toy, data = LinearGaussian(T, D).shifted(0.5), rows()
    alone = []
    for i in range(N):
        weights = torch.zeros(N, dtype=torch.float64)
        weights[i] = 1.0
        alone.append(gradient(toy, Rows(data.states, None, CONDITIONS, weights, data.real))[0])
    expected = sum(w * g for w, g in zip(data.weights.tolist(), alone, strict=True))

    torch.testing.assert_close(gradient(toy, data)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("micro_batch", [1, 3, 7, 20])
def test_micro_batches_add_up_to_the_batch(micro_batch: int) -> None:
    toy, data = LinearGaussian(T, D).shifted(0.5), rows()
    whole, sums = gradient(toy, data)
    grad, cut_sums = gradient(toy, data, micro_batch)

    torch.testing.assert_close(grad, whole, rtol=1e-5, atol=1e-5)
    assert cut_sums == pytest.approx(sums, rel=1e-6)


def test_ranks_exchange_gradients_once_per_batch() -> None:
    """`defer` surrounds every micro-batch but the last, forward and backward."""
    log: list[str] = []

    class Defer(nullcontext[None]):
        def __enter__(self) -> None:
            log.append("defer")

    def defer() -> AbstractContextManager:
        return Defer()

    def backward(loss: Tensor) -> None:
        log.append("backward")
        loss.backward()

    accumulate(
        LinearGaussian(T, D), rows(), *everything(), kl=0.0, scale=1.0, micro_batch=8, backward=backward, defer=defer
    )
    assert log == ["defer", "backward", "defer", "backward", "backward"]


def test_weighted_sum() -> None:
    loss = StepLoss(torch.tensor([1.0, -2.0]), torch.tensor([10.0, 20.0]))

    assert float(weighted_sum(loss, torch.tensor([2.0, 3.0]), 0.1)) == pytest.approx(2 * (1 + 1) + 3 * (-2 + 2))


def test_batches_hold_every_pair_once() -> None:
    drawn = list(batches(rows(), T, 6, torch.Generator().manual_seed(1)))
    pairs = [(i, t) for index, steps in drawn for i, t in zip(index.tolist(), steps.tolist(), strict=True)]

    assert [len(index) for index, _ in drawn] == [6, 6, 6, 2]
    assert sorted(pairs) == [(i, t) for i in range(N) for t in range(1, T + 1)]
    assert pairs != sorted(pairs)


def test_transitions_are_neighbouring_states() -> None:
    data = rows()
    picked = data.transitions(torch.tensor([3, 0]), torch.tensor([T, 1]))

    assert torch.equal(picked.x_t, torch.stack([data.states[3, 0], data.states[0, T - 1]]))
    assert torch.equal(picked.x_prev, torch.stack([data.states[3, 1], data.states[0, T]]))
    assert list(picked.conditions) == ["1.0", "0.3"]


def test_targets_stand_in_for_the_next_state_alone() -> None:
    data = rows(targets=True)
    picked = data.transitions(torch.tensor([3, 0]), torch.tensor([T, 1]))
    assert data.targets is not None

    assert torch.equal(picked.x_t, torch.stack([data.states[3, 0], data.states[0, T - 1]]))
    assert torch.equal(picked.x_prev, torch.stack([data.targets[3, 0], data.targets[0, T - 1]]))


@pytest.mark.parametrize("targets", [False, True])
def test_rows_add_up(targets: bool) -> None:
    data = rows(targets)
    both = data + data
    index, t = torch.tensor([N + 1, 1]), torch.tensor([2, 2])
    picked = both.transitions(index, t)

    assert len(both) == 2 * N
    assert torch.equal(picked.x_prev[0], picked.x_prev[1])
    assert torch.equal(both.weights[N:], data.weights) and torch.equal(both.real[N:], data.real)
