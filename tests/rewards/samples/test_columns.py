"""Columns of the prompts reach the rewards that want them, wherever these are called; others are called as ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dav_ray.rewards.base import Calls, evaluate
from dav_ray.rewards.combine import Product
from dav_ray.rewards.golden import precision_of
from dav_ray.rewards.registry import build
from dav_ray.rewards.samples.columns import WithColumns, columns_of, lacking

TABLE = {"two": {"count": 2, "target": "x"}, "three": {"count": 3, "target": "y"}, "none": {}}
FILE = """
import torch

class Count:
    differentiable = True
    wants = "float32"
    by_row = True
    prompt_columns = ("count",)

    def __init__(self, times=1.0):
        self.net = torch.nn.Linear(1, 1).to(torch.bfloat16)
        self.times = times

    def __call__(self, samples, conditions, columns):
        assert list(columns) == ["count"], "no more than it asked for"
        return self.times * samples.flatten(1).mean(1) * torch.tensor(columns["count"])

def length(samples, conditions, columns, unit=1):
    return torch.tensor([float(len(text)) for text in columns["target"]]) * unit
length.prompt_columns = ["target"]

class Plain:
    differentiable = False
    columns = 3  # its own

    def __call__(self, samples, conditions):
        return samples.flatten(1).mean(1)
"""
SAMPLES = np.full((3, 3, 2, 2), 0.5, np.float32)


@pytest.fixture
def place(tmp_path: Path) -> str:
    (tmp_path / "counting.py").write_text(FILE)
    return f"{tmp_path}/counting.py"


def values(reward: Any, conditions: list[str], batch: int | None = None) -> list[float]:
    scored = Calls(reward, batch)(SAMPLES[: len(conditions)], conditions, False)
    assert scored.error is None and scored.values is not None, scored.error
    return scored.values.tolist()


def test_each_sample_has_the_columns_of_its_prompt(place: str) -> None:
    count = build(f"{place}:Count", {"times": 2.0}, "cpu", TABLE)
    assert values(count, ["three", "two", "three"]) == [3.0, 2.0, 3.0]
    assert values(count, ["three", "two", "three"], batch=1) == [3.0, 2.0, 3.0]
    assert values(build(f"{place}:length", {"unit": 4}, "cpu", TABLE), ["two", "three"]) == [4.0, 4.0]
    scored = evaluate(count, SAMPLES[:2], ["two", "three"], True)
    assert scored.grads is not None
    assert np.allclose(scored.grads[:, 0, 0, 0], [4 / 12, 6 / 12])  # d/dx of 2 mean(x) count, 12 entries


def test_what_the_reward_says_of_itself_is_still_said(place: str) -> None:
    count = build(f"{place}:Count", {}, "cpu", TABLE)
    assert count.differentiable and count.by_row is True and count.wants == "float32"
    assert precision_of(count) == precision_of(count.reward) == "bfloat16"


def test_a_reward_without_columns_is_not_touched(place: str) -> None:
    plain = build(f"{place}:Plain", {}, "cpu", TABLE)
    assert not isinstance(plain, WithColumns) and values(plain, ["two"]) == [0.5]


def test_a_product_hands_each_factor_its_own(place: str) -> None:
    kinds = [{"kind": f"{place}:{name}"} for name in ("Count", "length", "Plain")]
    product = build("product", {"rewards": kinds}, "cpu", TABLE)
    assert columns_of(Product(kinds)) == ("count", "target")
    assert values(product, ["two", "three"]) == [2 * 0.5 * 1 * 0.5, 3 * 0.5 * 1 * 0.5]
    inner = build("product", {"rewards": [{"kind": "product", "args": {"rewards": kinds}}]}, "cpu", TABLE)
    assert values(inner, ["two", "three"]) == values(product, ["two", "three"])


@pytest.mark.parametrize(
    ("table", "text", "has"),
    [(TABLE, "none", "none"), ({"other": {"target": 1}}, "other", "target"), ({}, "x", "none")],
)
def test_a_prompt_without_the_column_is_an_error(table: Any, text: str, has: str, place: str) -> None:
    scored = evaluate(build(f"{place}:Count", {}, "cpu", table), SAMPLES[:1], [text], False)
    assert scored.error == f"ValueError: the prompt {text!r} has no column count; it has {has}"


def test_names_of_columns_are_texts(place: str) -> None:
    class Wrong:
        prompt_columns = "count"

    with pytest.raises(ValueError, match="prompt_columns = 'count'; allowed: names of columns"):
        columns_of(Wrong)
    assert lacking(TABLE, ["two", "none"], ["count"]) == ("none", "count")
    assert lacking(TABLE, ["two", "three"], ["count", "target"]) is None
    assert torch.is_tensor(build("brightness", {}, "cpu", TABLE)(torch.rand(1, 3, 2, 2), ["none"]))
