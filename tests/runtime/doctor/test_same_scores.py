"""The doctor asks a replica of each kind of node for the same scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from dav_ray.config.schema import Config
from dav_ray.rewards.base import Scored, evaluate
from dav_ray.rewards.golden import Golden, encode, precision_of
from dav_ray.rewards.registry import build
from dav_ray.runtime.doctor.pool import Node, Pool
from dav_ray.runtime.doctor.probes import probe_samples, same_scores
from dav_ray.runtime.reward.replica import Facts, hardware_of
from dav_ray.runtime.reward.spec import RewardSpec


def config(reward: dict[str, Any], model: dict[str, Any] | None = None, **role: Any) -> Config:
    roles = {"reward": {"cpus": 0, **role}}
    values = {"model": model or {"path": "shipped:digits"}, "prompts": ["one", "two"], "reward": reward, "roles": roles}
    return Config.model_validate(values)


def node(name: str, kind: str | None = None, id: str = "") -> Node:
    gpu = {} if kind is None else {"GPU": 1.0, f"accelerator_type:{kind}": 1.0}
    return Node(name, {"CPU": 4.0, **gpu}, {}, id=id)


def said(found: Config, *nodes: Node) -> list[tuple[str, bool]]:
    return [(finding.text, finding.ok) for finding in same_scores(found, Pool(nodes))]


def test_why_nobody_is_asked() -> None:
    reward = {"kind": "brightness"}
    assert said(config(reward), node("a"), node("b", "A100")) == [
        ("not asked: all nodes that could hold it have the same (cpu)", True)
    ]
    assert said(config(reward, gpus=1), node("a", "A100"), node("b")) == [
        ("not asked: all nodes that could hold it have the same (A100)", True)
    ]
    assert said(config(reward, gpus=1), node("a")) == [("not asked: no node is up that could hold it", True)]
    assert said(config({**reward, "golden_check": "off"}), node("a")) == [("not asked: golden_check is off", True)]


def test_samples_are_of_the_models_kind_and_size() -> None:
    images, texts = probe_samples(config({"kind": "brightness"}))
    assert images.shape == (8, 3, 32, 32) and images.dtype == np.float32 and 0 <= images.min() < images.max() <= 1
    assert texts == ("one", "two") * 4 and len({float(image.std()) for image in images}) == 8
    letters, _ = probe_samples(config({"kind": "gc_content"}, {"kind": "masked", "path": "shipped:dna"}))
    assert letters.ndim == 2 and letters.dtype == np.int64 and set(np.unique(letters)) == {0, 1, 2, 3}


def test_kinds_that_say_otherwise_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them asked in this process."""
    asked: list[str] = []

    def here(spec: RewardSpec, node: Node, samples: Any, conditions: Any, grad: bool) -> tuple[Facts, Scored]:
        asked.append(node.name)
        reward = build(spec.kind, dict(spec.args), "cpu")
        scored = evaluate(reward, samples, conditions, grad)
        hardware = hardware_of(node.resources) if "GPU" in node.resources else "cpu"
        return Facts(hardware, "f00", precision_of(reward)), scored

    monkeypatch.setattr("dav_ray.runtime.doctor.probes._ask", here)
    nodes = node("a", "A100"), node("b", "L4"), node("c", "L4")
    drift = {"kind": "tests.support.reward_kinds:Drift", "args": {"folder": str(tmp_path), "step": 40.0}}
    ((words, ok),) = said(config(drift, gpus=0.1), *nodes)
    assert not ok and words.startswith("on L4, gave ") and "is golden" in words and asked == ["a", "b"]
    steady = {"kind": "tests.support.reward_kinds:Total"}
    assert said(config(steady, gpus=0.1), *nodes) == [("L4 says what A100 says", True)]
    assert said(config({**steady, "golden": golden(tmp_path)}), node("a")) == [MISSED]


MISSED = "on cpu, gave 7.0 for sample 1 where 7.5 is golden (0.0225 off is allowed)", False


def golden(folder: Path) -> str:
    """A file of scores of which the second is half too large."""
    file = folder / "golden.npz"
    rows = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    file.write_bytes(encode(Golden(rows, ("a", "b"), np.array([3.0, 7.5]), False)))
    return str(file)


@pytest.mark.slow  # six actors; the test above asks in its own process
def test_each_kind_is_asked_and_one_that_says_otherwise_is_told(shared_ray: None, tmp_path: Path) -> None:
    """Two kinds, which are one real node."""
    cluster = ray.get_runtime_context().get_node_id()
    drift = {"kind": "tests.support.reward_kinds:Drift", "args": {"folder": str(tmp_path), "step": 40.0}}
    nodes = node("a", "A100", cluster), node("b", "L4", cluster)
    ((words, ok),) = said(config(drift, gpus=0.1), *nodes)
    assert not ok and words.startswith("on A100, gave ") and "is golden" in words
    steady = {"kind": "tests.support.reward_kinds:Total"}
    assert said(config(steady, gpus=0.1), *nodes) == [("L4 says what A100 says", True)]
    assert said(config({**steady, "golden": golden(tmp_path)}), node("a", id=cluster)) == [MISSED]
