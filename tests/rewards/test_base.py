"""Rewards: what is let through and what is an error, sums and gradients, and the built-in ones by hand."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dav_ray.errors import DataError, RewardError
from dav_ray.registry import Unregistered
from dav_ray.rewards.base import Scored, Scorer, all_pixels, check, evaluate, local_scorer
from dav_ray.rewards.colour import Brightness, TargetColour
from dav_ray.rewards.jpeg import JpegCompressibility, JpegIncompressibility
from dav_ray.rewards.registry import resolve

INF, NAN = math.inf, math.nan


def images(num: int = 4, size: int = 8) -> Tensor:
    return torch.rand((num, 3, size, size), generator=torch.Generator().manual_seed(0))


class Returns:
    """A reward that answers the same whatever it is asked."""

    differentiable = False

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Any:
        return self.answer() if callable(self.answer) else self.answer


def raising() -> None:
    raise OSError("no such\nmodel")


def score(*rewards: tuple[float, Any], num: int = 2) -> Tensor:
    named = [(f"judge{i}", weight, reward) for i, (weight, reward) in enumerate(rewards)]
    return local_scorer(named).of("round 3 chunk 7").score(images(num), ["one"] * num)


@pytest.mark.parametrize(
    "answer, value",
    [
        (torch.tensor([1.0, NAN]), "nan for sample 1 of 2"),
        (torch.tensor([INF, 1.0]), "inf for sample 0 of 2"),
        (torch.tensor([1.0]), "shape [1] where [2] is needed"),
        (torch.tensor([[1.0], [2.0]]), "shape [2, 1] where [2] is needed"),
        (torch.tensor(1.0), "shape [] where [2] is needed"),
        ([1.0, 2.0], "TypeError: returned list, a torch.Tensor is needed"),
        (None, "TypeError: returned NoneType, a torch.Tensor is needed"),
        (raising, "OSError: no such model"),
    ],
)
def test_what_is_no_number_for_each_sample_is_an_error(answer: Any, value: str) -> None:
    with pytest.raises(RewardError) as caught:
        score((1.0, Returns(torch.zeros(2))), (1.0, Returns(answer)))

    assert str(caught.value) == f"reward: judge1 gave {value} for chunk round 3 chunk 7"
    assert (caught.value.reward, caught.value.chunk) == ("judge1", "round 3 chunk 7")


def test_minus_infinity_is_a_value() -> None:
    assert score((2.0, Returns(torch.tensor([-INF, 1.0])))).tolist() == [-INF, 2.0]


@pytest.mark.parametrize("weight", [-1.0, 0.0])
def test_a_weight_that_turns_minus_infinity_into_something_else_is_an_error(weight: float) -> None:
    with pytest.raises(RewardError, match=r"judge0 \+ judge1"):
        score((weight, Returns(torch.tensor([-INF, 1.0]))), (1.0, Returns(torch.zeros(2))))


def test_infinities_that_cancel_are_an_error() -> None:
    with pytest.raises(RewardError, match=r"judge0 \+ judge1"):
        score((-1.0, Returns(torch.tensor([-INF, 1.0]))), (1.0, Returns(torch.tensor([-INF, 1.0]))))


def test_scores_are_the_weighted_sum_in_float64() -> None:
    total = score((0.1, Returns(torch.tensor([1, 2]))), (-2.0, Returns(torch.tensor([0.5, 0.25]).double())))

    assert total.dtype == torch.float64
    assert total.tolist() == [0.1 * 1 - 2 * 0.5, 0.1 * 2 - 2 * 0.25]


def test_gradients_are_weighted_and_of_each_sample_alone() -> None:
    """The strength of a sample's gradient never depends on how many others are scored with it."""
    x, conditions = images(4), ["one"] * 4
    scorer = local_scorer([("bright", 2.0, Brightness()), ("orange", 0.5, TargetColour((1.0, 0.5, 0.0)))])
    values, grads = scorer.score_and_grad(x, conditions)
    size, target = x[0].numel(), torch.tensor([1.0, 0.5, 0.0]).reshape(3, 1, 1)

    torch.testing.assert_close(grads, 2.0 / size - 0.5 * 2 * (x - target) / size, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(values, scorer.score(x, conditions))
    for i in range(4):
        assert torch.equal(scorer.score_and_grad(x[i : i + 1], ["one"])[1][0], grads[i])


def test_samples_may_carry_a_graph_and_another_precision() -> None:
    x = images(2).double().requires_grad_()
    values, grads = local_scorer([("bright", 1.0, Brightness())]).score_and_grad(x * 1.0, ["one"] * 2)

    assert grads.dtype == torch.float32 and not values.requires_grad
    torch.testing.assert_close(values, x.detach().flatten(1).mean(1), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "reward, value",
    [
        (JpegCompressibility(), "RuntimeError"),
        (lambda samples, conditions: samples.flatten(1).mean(1) * torch.tensor([NAN, 1.0]), "nan for sample 0 of 2"),
        (lambda samples, conditions: (samples - samples).flatten(1).sum(1).sqrt(), "a gradient that is not finite"),
    ],
)
def test_a_gradient_that_is_none_is_an_error(reward: Callable[..., Tensor], value: str) -> None:
    with pytest.raises(RewardError, match=f"judge gave {value}"):
        local_scorer([("judge", 1.0, reward)]).score_and_grad(images(2), ["one"] * 2)


def test_the_caller_keeps_its_samples() -> None:
    """Arrays from the object store are read-only, and a reward may write into what it gets."""
    samples = images(2)
    before = samples.clone()

    def greedy(batch: Tensor, conditions: Sequence[str]) -> Tensor:
        return batch.zero_().flatten(1).sum(1)

    assert local_scorer([("greedy", 1.0, greedy)]).score(samples, ["one"] * 2).tolist() == [0.0, 0.0]
    assert torch.equal(samples, before)


def test_check_returns_the_values() -> None:
    values = np.array([1.0, -INF])

    assert check(Scored(values), 2, reward="judge", chunk="c") is values


def test_brightness_and_colour_by_hand() -> None:
    black, white = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    half = torch.cat([torch.zeros(1, 3, 4, 2), torch.ones(1, 3, 4, 2)], dim=3)
    batch = torch.cat([black, white, half])

    assert Brightness()(batch, [""] * 3).tolist() == [0.0, 1.0, 0.5]
    orange = TargetColour((1.0, 0.5, 0.0))(batch, [""] * 3)
    assert orange.tolist() == pytest.approx([-1.25 / 3, -1.25 / 3, -1.25 / 3])
    assert TargetColour((0.0, 0.0, 0.0))(batch, [""] * 3).tolist() == [0.0, -1.0, -0.5]


@pytest.mark.parametrize("colour", [(1.0, 0.5), (1.0, 0.5, 2.0), (-0.1, 0.0, 0.0)])
def test_a_colour_has_three_numbers_between_0_and_1(colour: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="three numbers in"):
        TargetColour(colour)


@pytest.mark.parametrize("quality", [95, 30])
def test_jpeg_sizes_are_those_of_pil(quality: int) -> None:
    noisy = images(2, 16)
    batch = torch.cat([noisy, torch.full((1, 3, 16, 16), 0.3)])
    expected = []
    for picture in batch:
        file = io.BytesIO()
        array = np.rint(picture.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        Image.fromarray(array).save(file, format="JPEG", quality=quality)
        expected.append(len(file.getvalue()) / 1000)
    more, less = JpegIncompressibility(quality), JpegCompressibility(quality)

    assert more(batch, [""] * 3).tolist() == expected
    assert less(batch, [""] * 3).tolist() == [-size for size in expected]
    assert expected[2] < min(expected[:2])


def test_names_and_paths_resolve() -> None:
    assert resolve("brightness") is Brightness
    assert resolve("dav_ray.rewards.colour:TargetColour") is TargetColour
    with pytest.raises(Unregistered, match="^unknown reward; allowed: brightness, "):
        resolve("beauty")
    with pytest.raises(AttributeError):
        resolve("dav_ray.rewards.colour:Beauty")


class Seen:
    """Notes what it is shown."""

    differentiable = False

    def __init__(self, wants: str = "float32") -> None:
        self.wants, self.shown = wants, list[Tensor]()

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        self.shown.append(samples)
        return samples.double().flatten(1).mean(1)


def sent(*rewards: Any) -> tuple[Scorer, list[np.ndarray]]:
    """A scorer, and what it sends."""
    local, arrays = local_scorer([(f"judge{i}", 1.0, reward) for i, reward in enumerate(rewards)]), list[np.ndarray]()

    def call(samples: np.ndarray, conditions: Sequence[str], grad: bool) -> list[Scored]:
        arrays.append(samples)
        return [evaluate(reward, samples, conditions, grad) for reward in rewards]

    return Scorer(local.names, [1.0] * len(rewards), call, pixels=all_pixels(rewards)), arrays


def test_pixels_are_sent_where_all_rewards_want_them() -> None:
    x, texts = images(3), [""] * 3
    for rewards, dtype in (
        ([JpegCompressibility()], np.uint8),
        ([JpegCompressibility(), Seen("uint8")], np.uint8),
        ([JpegCompressibility(), Seen()], np.float32),
        ([Brightness()], np.float32),
    ):
        scorer, arrays = sent(*rewards)
        values = scorer.score_each(x, texts)[1]
        assert arrays[0].dtype == dtype
        assert values[:, 0].tolist() == [evaluate(rewards[0], x.numpy(), texts, False).values[i] for i in range(3)]
    seen = Seen("uint8")
    evaluate(seen, x.numpy(), texts, False)
    sent(seen)[0].score(x, texts)
    assert [shown.dtype for shown in seen.shown] == [torch.uint8] * 2 and torch.equal(*seen.shown)
    tokens = torch.arange(6).reshape(3, 2)
    scorer, arrays = sent(Seen("uint8"))
    scorer.score(tokens, texts)
    assert arrays[0].dtype == np.int64


def test_sizes_of_jpegs_are_those_of_numbers_sent() -> None:
    """Whoever rounds: bit for bit what a reward gives that gets float32."""
    x, texts = images(5, 64), [""] * 5
    scorer, arrays = sent(JpegIncompressibility())
    assert scorer.score(x, texts).tolist() == JpegIncompressibility()(x, texts).tolist()
    assert arrays[0].nbytes * 4 == x.numpy().nbytes


@pytest.mark.parametrize("wants", ["uint8", "float32"])
def test_an_image_that_is_not_finite_reaches_no_reward(wants: str) -> None:
    x = images(12)
    x[9, 0, 0, 0] = NAN
    seen = Seen(wants)
    with pytest.raises(DataError, match="the model gave a sample that is not finite in chunk c") as caught:
        sent(seen)[0].of("c").score(x, [""] * 12)
    assert seen.shown == [] and caught.value.rows == (9,)
    assert np.array_equal(caught.value.evidence.samples, x.numpy(), equal_nan=True)
