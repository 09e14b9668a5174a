"""Products of rewards: values, gradients by the product rule, what is dead and what is an error."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dav_ray.rewards.base import evaluate
from dav_ray.rewards.combine import Product

INF, NAN = math.inf, math.nan


class Column:
    """The value that stands in one column of the samples [B, n], given times a factor."""

    differentiable = True

    def __init__(self, column: int, times: float = 1.0) -> None:
        self.column, self.times = column, times

    def __call__(self, samples: Tensor, conditions: Any) -> Tensor:
        return samples[:, self.column] * self.times


class FlatColumn(Column):
    differentiable = False


def column(i: int, kind: str = "Column", **args: float) -> dict[str, Any]:
    return {"kind": f"tests.rewards.test_combine:{kind}", "args": {"column": i, **args}}


def product_of(rows: list[list[float]], kind: str = "Column") -> list[float]:
    samples = torch.tensor(rows)
    return Product([column(i, kind) for i in range(samples.shape[1])])(samples, [""] * len(rows)).tolist()


def test_values_multiply_and_minus_infinity_wins() -> None:
    assert product_of([[2, 3, 0.5], [2, 0, 5], [-INF, 3, 1], [0, -INF, 1], [-INF, -INF, 0]]) == [3, 0, -INF, -INF, -INF]


def test_one_factor_is_itself_and_order_does_not_matter() -> None:
    samples = torch.rand(5, 2, generator=torch.Generator().manual_seed(0))
    one, ab, ba = Product([column(0)]), Product([column(0), column(1)]), Product([column(1), column(0)])

    assert torch.equal(one(samples, ()), samples[:, 0].double())
    assert torch.equal(ab(samples, ()), ba(samples, ()))
    nested = Product([{"kind": "product", "args": {"rewards": [column(0)]}}, column(1)])
    assert torch.equal(nested(samples, ()), ab(samples, ()))
    assert torch.equal(pickle.loads(pickle.dumps(ab))(samples, ()), ab(samples, ()))


@pytest.mark.parametrize("bad", [-0.5, NAN, INF])
def test_a_factor_out_of_range_is_named(bad: float) -> None:
    """Even beside a factor that is -inf, or zero, and would hide it."""
    for other in (1.0, 0.0, -INF):
        with pytest.raises(ValueError) as caught:
            product_of([[1.0, 1.0], [other, bad]])
        line = f"rewards[1] (tests.rewards.test_combine:Column) gave {bad} for sample 1; allowed: numbers >= 0, or -inf"
        assert str(caught.value) == line


def test_gradient_is_that_of_a_product() -> None:
    rows = np.array([[2, 3, 5], [0, 3, 5], [0, 0, 5], [2, -INF, 5]], np.float32)
    reward = Product([column(i) for i in range(3)])
    scored = evaluate(reward, rows, [""] * 4, grad=True)

    assert scored.values is not None and scored.grads is not None
    assert scored.values.tolist() == [30, 0, 0, -INF]
    assert scored.grads.tolist() == [[15, 10, 6], [15, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert reward.differentiable


def test_a_factor_without_gradient_ends_the_call_that_asks_for_one() -> None:
    reward = Product([column(0), column(1, "FlatColumn")])
    rows = np.ones((2, 2), np.float32)

    assert Product.differentiable and not reward.differentiable
    assert evaluate(reward, rows, ["", ""], grad=False).values is not None
    assert evaluate(reward, rows, ["", ""], grad=True).error == (
        "ValueError: rewards[1] (tests.rewards.test_combine:FlatColumn): no gradient; "
        "allowed: search.gradient = false, or differentiable factors"
    )


def test_motif_times_window() -> None:
    """Built-in factors by name, with their arguments: inside the window the share itself, outside nothing."""
    window = {"kind": "gc_window", "args": {"low": 0.25, "high": 0.5}}
    reward = Product([{"kind": "gc_content"}, window])
    tokens = torch.tensor([[0, 0, 0, 0], [1, 0, 0, 3], [1, 2, 0, 3], [1, 2, 1, 3]])

    assert reward(tokens, [""] * 4).tolist() == [0.0, 0.25, 0.5, 0.0]


@pytest.mark.parametrize(
    ("rewards", "line"),
    [
        ([], "rewards = []; allowed: a list of at least one {kind, args}"),
        ({"kind": "brightness"}, "rewards = {'kind': 'brightness'}; allowed: a list of at least one {kind, args}"),
        (["brightness"], "rewards[0] = 'brightness'; allowed: {kind, args}"),
        ([{"kind": "brightness", "weight": 2}], "rewards[0] = {'kind': 'brightness', 'weight': 2}; allowed: {kind, "),
        ([{"kind": "brightness"}, {"kind": "brightnes"}], "rewards[1].kind = brightnes; allowed: brightness, "),
        ([{"kind": "gc_window", "args": {"low": 2}}], "rewards[0].args = {'low': 2}: gc_window: low = 2, high = 0.6; "),
        ([{"kind": "brightness", "args": {"x": 1}}], "rewards[0].args = {'x': 1}: brightness: Brightness() takes no "),
    ],
)
def test_what_no_product_can_be_built_from(rewards: Any, line: str) -> None:
    with pytest.raises(ValueError) as caught:
        Product(rewards)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)
