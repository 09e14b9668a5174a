"""`search.alpha: 0.1 sd`: what it comes to, who may say it, and that it stays."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dav_ray.errors import RunError, StaleEpoch
from dav_ray.run_dir.manifest import ManifestStore
from dav_ray.run_dir.manifest_record import Manifest
from dav_ray.run_dir.records import RunLog
from dav_ray.run_dir.storage.interface import Storage
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.runtime.measured_alpha import settle
from dav_ray.runtime.watch.progress import Progress

REWARDS = [1.0, 2.0, 4.0, -math.inf]


def samples(rewards: list[float] = REWARDS) -> pa.Table:
    return pa.table({"reward": pa.array(rewards, pa.float64())})


def never() -> pa.Table:
    raise AssertionError("the samples are not to be asked again")


def driver(folder: Path, alpha: float | str = "0.1 sd", read: Callable[[], pa.Table] = samples) -> float:
    """What a driver that has just started settles."""
    storage = open_storage(str(folder))
    return settle(alpha, opened(storage), RunLog(storage, 1), Progress(1), read)


def opened(storage: Storage) -> ManifestStore:
    store = ManifestStore(storage)
    store.open("0" * 64, {})
    return store


def test_it_is_measured_on_finite_rewards_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alpha = driver(tmp_path)
    assert alpha == 0.1 * float(np.std([1.0, 2.0, 4.0]))
    assert json.loads((tmp_path / "manifest.json").read_text())["alpha"] == alpha
    event = json.loads((tmp_path / "events.jsonl").read_text())
    assert {name: event[name] for name in ("event", "alpha", "typed", "samples")} == {
        "event": "alpha_measured",
        "alpha": alpha,
        "typed": "0.1 sd",
        "samples": 3,
    }
    assert capsys.readouterr().out == "search.alpha = 0.1 sd: 0.1247, as the reward's standard deviation is 1.247\n"

    assert driver(tmp_path, read=never) == alpha  # another driver, bit for bit
    assert driver(tmp_path, read=lambda: samples([5.0, 9.0])) == alpha
    assert capsys.readouterr().out == "" and len((tmp_path / "events.jsonl").read_text().splitlines()) == 1


def test_a_number_needs_no_samples_and_leaves_the_manifest_as_it_was(tmp_path: Path) -> None:
    assert driver(tmp_path, 0.25, never) == 0.25
    assert "alpha" not in json.loads((tmp_path / "manifest.json").read_text())


def test_it_stays_through_the_rounds(tmp_path: Path) -> None:
    alpha, store = driver(tmp_path), opened(open_storage(str(tmp_path)))
    store.advance(phase="evaluate", policy_version=1)
    store.close_round({})
    assert store.finish().alpha == alpha
    stored = ManifestStore(open_storage(str(tmp_path))).load()
    assert stored is not None and stored.alpha == alpha and stored.round == 2


def test_a_driver_that_was_overtaken_settles_nothing(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    old = opened(storage)
    opened(storage)
    with pytest.raises(StaleEpoch):
        settle("0.1 sd", old, RunLog(storage, 1), Progress(1), samples)
    assert "alpha" not in json.loads((tmp_path / "manifest.json").read_text())


def test_whoever_settles_first_is_right(tmp_path: Path) -> None:
    """A driver whose answer was lost finds its own number in the manifest, and takes it."""
    store = opened(open_storage(str(tmp_path)))
    assert store.settle_alpha(0.5) == 0.5
    assert store.settle_alpha(0.7) == 0.5 and store.current.alpha == 0.5


@pytest.mark.parametrize(
    ("rewards", "why"),
    [
        ([3.0, 3.0, 3.0, -math.inf], "all 3 samples of the pretrained model have the reward 3"),
        ([0.1] * 6, "all 6 samples of the pretrained model have the reward 0.1"),
        ([-math.inf] * 4, "no sample of the pretrained model has a finite reward"),
        ([1e308, -1e308], "the rewards of the pretrained model's samples have the standard deviation inf"),
    ],
)
def test_without_a_standard_deviation_the_run_ends_with_a_line(tmp_path: Path, rewards: list[float], why: str) -> None:
    with pytest.raises(RunError) as raised:
        driver(tmp_path, "2 sd", lambda: samples(rewards))
    assert raised.value.role == "reward"
    assert raised.value.cause == f"search.alpha = 2 sd: {why}; allowed: a number, in a new run directory"
    assert driver(tmp_path) > 0  # nothing was settled


@pytest.mark.parametrize("alpha", ["0.0", "-1.0", "NaN", "Infinity", '"1"', "1"])
def test_a_manifest_that_says_something_else_is_refused(tmp_path: Path, alpha: str) -> None:
    store = opened(open_storage(str(tmp_path)))
    text = store.current.to_json().decode().replace("{\n", f'{{\n "alpha": {alpha},\n', 1)
    with pytest.raises(ValueError, match="alpha"):
        Manifest.from_json(text.encode())
