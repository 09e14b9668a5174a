"""Stored transitions as a rank recomputes them, against what the search drew them by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dav_ray.config.build import for_search, for_training
from dav_ray.config.schema import Config
from dav_ray.runtime.doctor import estimates
from dav_ray.runtime.probe.rates import Rates
from dav_ray.runtime.probe.replay import replayed
from tests.support.runs import masked_model
from tests.support.tiny import save_tiny


def config_of(model: dict[str, Any], **sections: Any) -> Config:
    search = {"steps": 4, "trajectories": 4, "chunk": 4, "candidates": 2, **sections.pop("search", {})}
    reward = {"kind": "gc_content" if model.get("kind") == "masked" else "brightness"}
    prompts = {} if model.get("kind") == "masked" else {"prompts": ["a", "b"]}
    return Config.model_validate({"model": model, "reward": reward, "search": search, **prompts, **sections})


def apart(config: Config, moved: float = 0.0) -> float:
    """moved: what a rank's adapters are off by."""
    searched, fitted = for_search(config), for_training(config, micro_batch=3)
    if moved:
        fitted.load_policy_state({name: p + moved for name, p in fitted.policy_state().items()})
    return replayed(config, searched, fitted)


@pytest.fixture(params=["masked", "images"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    if request.param == "masked":
        return {"kind": "masked", "path": masked_model(tmp_path)}
    return {"path": save_tiny(tmp_path)}


def test_the_same_policy_says_the_same_of_what_is_stored(model: dict[str, Any]) -> None:
    """Up to float32's rounding of a sum over all dimensions."""
    targets = {"targets": ["convs"]} if model.get("kind") == "masked" else {}
    config = config_of(model, mstep={"micro_batch": 3, "lora": targets})
    assert apart(config) < 1e-3
    assert apart(config, moved=0.3) > 0.1  # another policy is seen


def test_steps_that_draw_nothing_are_left_out(tmp_path: Path) -> None:
    config = config_of({"path": save_tiny(tmp_path)}, search={"eta": [1.0]})
    assert apart(config) < 1e-3


def test_half_precision_is_worse_and_still_within_the_bound(tmp_path: Path) -> None:
    path = save_tiny(tmp_path)
    exact = apart(config_of({"path": path}))
    half = apart(config_of({"path": path, "dtype": "bfloat16"}, mstep={"precision": "bfloat16"}))
    print(f"float32: {exact}, bfloat16: {half}")
    assert half < 2.0


@pytest.mark.parametrize("nats, ok", [(1e-4, True), (0.5, False)])
def test_what_the_doctor_says(tmp_path: Path, nats: float, ok: bool) -> None:
    config = config_of({"path": "x/y"})
    found = estimates.replay(config, Rates(0.1, 0.1, 0.1, 0, "CPU", nats))
    assert found.ok is ok and f"{nats:.2g} nats (model.dtype float32" in found.text
    assert ("above 0.1" in found.text) is not ok
    assert torch.tensor(nats) > 0
