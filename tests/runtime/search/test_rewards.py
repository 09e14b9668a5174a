"""Rewards in the search worker's own process: the values, golden scores and events of the pool, and nothing sent."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from dav_ray.config.plan import plan
from dav_ray.config.schema import Config
from dav_ray.errors import DeviceError, RunError
from dav_ray.rewards.base import Scored, evaluate
from dav_ray.rewards.golden import decode
from dav_ray.rewards.jpeg import JpegCompressibility
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.runtime.reward.fleet import client_timeout, reward_specs
from dav_ray.runtime.search.rewards import WorkerRewards

KINDS = "tests.support.reward_kinds"


class Pool:
    """Stands where the fleet is asked: a run has no rewards there, or one."""

    def __init__(self, *values: float, pixels: bool = False) -> None:
        self.values, self.sent_bytes, self.asked, self._pixels = values, 0, 0, pixels

    def pixels(self) -> bool:
        return self._pixels

    def __call__(self, samples: np.ndarray, conditions: Sequence[str], grad: bool) -> list[Scored]:
        self.asked, self.sent_bytes = self.asked + 1, self.sent_bytes + samples.nbytes
        return [Scored(np.full(len(samples), value)) for value in self.values]


class Where:
    """Notes the thread and the process of each call, and how many calls there are at a time."""

    differentiable = False
    seen: list[tuple[str, int]] = []
    most = now = 0

    def __call__(self, samples: Tensor, conditions: Sequence[str]) -> Tensor:
        Where.now += 1
        Where.most = max(Where.most, Where.now)
        Where.seen.append((threading.current_thread().name, os.getpid()))
        threading.Event().wait(0.02)
        Where.now -= 1
        return samples.flatten(1).sum(1)


def config(*rewards: dict[str, Any], **role: Any) -> Config:
    given = [{"where": "search", **reward} for reward in rewards]
    roles = {"reward": {"cpus": 3, **role}}
    return Config.model_validate({"model": {"path": "x"}, "prompts": ["a"], "reward": given, "roles": roles})


def worker(found: Config, folder: Path, pool: Pool | None = None) -> WorkerRewards:
    return WorkerRewards(found, pool or Pool(), open_storage(str(folder / "run")), "cpu")  # type: ignore[arg-type]


def images(num: int = 6) -> np.ndarray:
    return np.random.default_rng(0).random((num, 3, 32, 32), np.float32)


def events(of: WorkerRewards) -> list[str]:
    return [name for name, _ in of.events()]


def test_values_are_those_of_the_reward_and_nothing_is_sent(tmp_path: Path) -> None:
    pool = Pool()
    rewards = worker(config({"kind": "jpeg_compressibility"}), tmp_path, pool)
    (scored,) = rewards(images(), ["a"] * 6, False)
    expected = evaluate(JpegCompressibility(), images(), ["a"] * 6, False)
    assert scored.values is not None and expected.values is not None
    assert scored.values.tolist() == expected.values.tolist()
    assert (rewards.sent_bytes, pool.asked, rewards.pixels()) == (0, 0, True)


def test_rewards_of_both_places_keep_their_order(tmp_path: Path) -> None:
    kinds = [{"kind": "brightness", "where": "pool"}, {"kind": f"{KINDS}:Total"}, {"kind": "target_colour"}]
    kinds.append({"kind": "brightness", "where": "pool", "name": "again"})
    pool = Pool(1.0, 2.0)
    rewards = worker(config(*kinds), tmp_path, pool)
    found = [scored.values for scored in rewards(images(), ["a"] * 6, False)]
    assert [float(values[0]) for values in (found[0], found[3])] == [1.0, 2.0]
    np.testing.assert_allclose(found[1], images().reshape(6, -1).sum(1), rtol=1e-5)
    assert (found[2] <= 0).all() and rewards.sent_bytes == images().nbytes and not rewards.pixels()


def test_pixels_are_for_all_places_to_want(tmp_path: Path) -> None:
    jpeg = {"kind": "jpeg_compressibility"}
    kinds = config({**jpeg, "where": "pool"}, {**jpeg, "name": "here"})
    assert worker(kinds, tmp_path, Pool(1.0, pixels=True)).pixels()
    assert not worker(kinds, tmp_path, Pool(1.0, pixels=False)).pixels()


def test_a_reward_is_asked_by_one_thread_at_a_time(tmp_path: Path) -> None:
    rewards = worker(config({"kind": f"{__name__}:Where"}), tmp_path)
    threads = [threading.Thread(target=rewards, args=(images(2), ["a"] * 2, False)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Where.most == 1 and {pid for _, pid in Where.seen} == {os.getpid()}
    assert {name.rsplit("_", 1)[0] for name, _ in Where.seen} == {"reward-0"}


def test_gradients_and_batches_are_those_of_the_pool(tmp_path: Path) -> None:
    kind = {"kind": f"{KINDS}:Total", "args": {"folder": str(tmp_path)}}
    rewards = worker(config(kind, batch=4), tmp_path)
    (scored,) = rewards(images(), ["a"] * 6, True)
    assert scored.grads is not None and (scored.grads == 1).all()
    assert (tmp_path / "calls").read_text().split() == ["4", "2", "4", "2"]  # then the golden scores


def test_golden_scores_hold_the_next_worker(tmp_path: Path) -> None:
    kind = {"kind": f"{KINDS}:Drift", "args": {"folder": str(tmp_path), "step": 0.0}}
    first = worker(config(kind), tmp_path)
    first(images(), ["a"] * 6, False)
    assert events(first) == ["golden_stored"] and events(first) == []
    stored = decode((tmp_path / "run/golden/Drift.npz").read_bytes())
    assert (len(stored.conditions), stored.precision) == (6, "float32")
    worker(config(kind), tmp_path)(images(3), ["a"] * 3, False)

    (tmp_path / "built-x").touch()
    other = {**kind, "args": {"folder": str(tmp_path), "step": 900.0}}
    refused = worker(config(other), tmp_path)
    words = "Drift: no replica reproduces the golden scores; .* it runs in a search worker \\(reward.where\\)"
    with pytest.raises(RunError, match=words):
        refused(images(), ["a"] * 6, False)
    warned = worker(config({**other, "golden_check": "warn"}), tmp_path)
    warned(images(), ["a"] * 6, False)
    ((name, fields),) = warned.events()
    assert (name, fields["reward"]) == ("golden_differs", "Drift") and warned.deviations()["Drift"] >= 900
    off = worker(config({**other, "golden_check": "off"}), tmp_path)
    off(images(), ["a"] * 6, False)
    assert events(off) == [] and off.deviations() == {}


def test_who_is_second_to_store_golden_scores_is_held_to_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both began when there were none."""
    kind = {"kind": f"{KINDS}:Drift", "args": {"folder": str(tmp_path), "step": 900.0}}
    monkeypatch.setattr("dav_ray.runtime.search.rewards.known_golden", lambda *_: None)
    first = worker(config(kind), tmp_path)
    other = worker(config(kind), tmp_path)
    same = worker(config({**kind, "args": {"folder": str(tmp_path), "step": 0.0}}), tmp_path)
    first(images(), ["a"] * 6, False)
    same(images(4), ["a"] * 4, False)
    assert events(same) == [] and len(decode((tmp_path / "run/golden/Drift.npz").read_bytes()).values) == 6
    with pytest.raises(RunError, match="golden"):
        other(images(4), ["a"] * 4, False)


def test_faults_are_met_in_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = worker(config({"kind": f"{KINDS}:Small", "args": {"folder": str(tmp_path), "room": 3}}), tmp_path)
    (scored,) = small(images(), ["a"] * 6, False)
    assert scored.error is None and events(small) == ["golden_stored", "out_of_memory"]

    monkeypatch.setattr("dav_ray.rewards.base.time.sleep", lambda seconds: None)
    kind = {"kind": f"{KINDS}:Busy", "args": {"folder": str(tmp_path), "since": 0.0, "times": 2}}
    busy = worker(config(kind), tmp_path)
    (scored,) = busy(images(), ["a"] * 6, False)
    assert scored.error is None and events(busy) == ["golden_stored", "reward_retried", "reward_retried"]

    lost = worker(config({"kind": f"{KINDS}:Lost", "args": {"folder": str(tmp_path), "times": 9}}), tmp_path)
    with pytest.raises(DeviceError, match="Lost: AcceleratorError: CUDA error"):
        lost(images() - 2, ["a"] * 6, False)


def test_rewards_of_the_workers_have_no_actors(tmp_path: Path) -> None:
    here = config({"kind": "brightness"})
    both = config({"kind": "brightness"}, {"kind": "brightness", "name": "pooled", "where": "pool"})
    assert reward_specs(here, "n") == [] and [spec.number for spec in reward_specs(both, "n")] == [1]
    assert [spec.number for spec in reward_specs(both, "n", where="search")] == [0]
    assert client_timeout(here) < client_timeout(both)
    assert [need.name for need in plan(here).roles] == ["search", "train"]
    assert [(need.name, need.replicas) for need in plan(both).roles] == [("search", 1), ("reward", 1), ("train", 1)]


def test_the_default_is_no_setting_of_a_run() -> None:
    plain = config({"kind": "brightness", "where": "pool"})
    assert "where" not in plain.model_dump()["reward"][0]
    assert plain.identity() != config({"kind": "brightness"}).identity()
