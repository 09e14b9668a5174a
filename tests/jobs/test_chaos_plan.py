"""The parts of jobs/chaos without a cluster: what is drawn, what counts as a witness and as a difference."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dav_ray.run_dir import shards
from dav_ray.run_dir.manifest import Manifest, Shard
from jobs.chaos import compare, plan, watch


@pytest.mark.parametrize("domains", [["masked", "images"], ["masked"]])
def test_each_role_and_phase_is_hit_twice_and_domains_share_alike(domains: list[str]) -> None:
    faults = plan.draw(100, 0, domains)
    cells = Counter((fault.role, fault.phase) for fault in faults)

    assert len(faults) == 100 and {fault.number for fault in faults} == set(range(1, 101))
    assert len(cells) == len(plan.ROLES) * len(plan.PHASES) and min(cells.values()) >= 2
    shares = Counter(fault.domain for fault in faults)
    assert set(shares) == set(domains) and max(shares.values()) - min(shares.values()) <= 10
    assert plan.draw(100, 0, domains) == faults != plan.draw(100, 1, domains)


def test_a_fault_that_missed_is_the_same_at_another_moment() -> None:
    first = plan.draw(100, 0, ["masked"])[0]
    other = plan.again(first, 0)
    same = ("number", "domain", "role", "phase")

    assert [getattr(other, key) for key in same] == [getattr(first, key) for key in same]
    assert (other.attempt, other.share) != (first.attempt, first.share)


def test_only_who_is_there_at_the_very_end_is_struck_then() -> None:
    last = {role for role in plan.ROLES if any(moment.last for moment in plan.moments("report", role))}
    assert last == {"driver", "head"}


def event(name: str, time: float, **fields: Any) -> dict[str, Any]:
    return {"event": name, "time": time, "epoch": 1, **fields}


def placed(role: str, actor: str, time: float) -> dict[str, Any]:
    return event("actor_placed", time, role=role, actor=actor)


LOST = event("worker_lost", 11.0, worker="search-0")
STARTED = {"round": 3, "phase": "fit"}


@pytest.mark.parametrize(
    "role, events, found",
    [
        ("search", [event("worker_back", 9.0, worker="search-0")], ("", None, None)),  # from before
        ("search", [LOST], ("worker_lost", 11.0, None)),
        ("search", [LOST, event("worker_back", 14.0, worker="search-0")], ("worker_lost", 11.0, 14.0)),
        ("search", [event("worker_restarted", 12.0, worker="search-0")], ("worker_restarted", 12.0, 12.0)),
        ("reward", [placed("reward", "reward-0-1", 10.5)], ("", None, None)),  # nobody was lost
        ("reward", [event("replica_lost", 12.0), placed("reward", "r", 15.0)], ("replica_lost", 12.0, 15.0)),
        ("train", [event("train_restarted", 13.0, rank=0)], ("train_restarted", 13.0, 13.0)),
        ("node", [event("node_lost", 12.0), placed("search", "search-0", 13.0)], ("node_lost", 12.0, None)),
        (
            "node",
            [event("node_lost", 12.0), placed("search", "search-0", 13.0), event("train_restarted", 15.0, rank=0)],
            ("node_lost", 12.0, 15.0),
        ),
        ("driver", [event("driver_started", 12.0, cluster="a", **STARTED)], ("", None, None)),  # no newer epoch
        ("driver", [event("driver_started", 12.0, cluster="b", **STARTED) | {"epoch": 2}], ("", None, None)),
        (
            "driver",
            [event("driver_started", 12.0, cluster="a") | {"epoch": 2}, placed("search", "search-0", 20.0)],
            ("driver_started", 12.0, 20.0),
        ),
        ("head", [event("driver_started", 12.0, cluster="a") | {"epoch": 2}], ("", None, None)),  # the same cluster
        ("head", [event("driver_started", 12.0, cluster="b") | {"epoch": 2}], ("driver_started", 12.0, None)),
    ],
)
def test_a_fault_counts_if_the_events_tell_of_it_and_of_its_end(
    role: str, events: list[dict[str, Any]], found: tuple[str, float | None, float | None]
) -> None:
    hit = watch.Hit(role, 10.0, 1, "a", {"search": 1, "train": 1, "reward": 0} if role == "node" else {})
    assert watch.told(hit, events, done=False) == watch.Told(*found)


def test_a_driver_that_had_nothing_left_to_do_is_back_when_the_run_is_over() -> None:
    events = [event("driver_started", 12.0, cluster="a") | {"epoch": 2}]
    assert watch.told(watch.Hit("driver", 10.0, 1, "a", {}), events, done=True).back == 12.0


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs of a round that are the same."""
    one = tmp_path / "one"
    data, sha256 = shards.encode(pa.table({"trajectory": [0, 1]}))
    shard = Shard(shards.shard_path(1, 0, sha256), sha256, 0, 2, 0)
    files = {
        shard.path: data,
        "policy/v0001/model.safetensors": b"weights",
        "evaluate/round-0001.parquet": b"table",
        "manifest.json": Manifest(3, 2, "done", 1, (), 1, {"ray": "2"}, "c").to_json(),
        "manifests/round-0001.json": json.dumps(
            {"round": 1, "policy_version": 0, "shards": [vars(shard)], "summary": {"reward": 1.0, "time/round_s": 4.0}}
        ).encode(),
        "events.jsonl": b'{"event": "driver_started"}\n',
        "metrics.jsonl": b'{"time": 1.0, "round": 1, "role": "mstep", "mstep/nll": 2.0, "time/mstep_s": 3.0}\n',
    }
    for name, content in files.items():
        (one / name).parent.mkdir(parents=True, exist_ok=True)
        (one / name).write_bytes(content)
    shutil.copytree(one, tmp_path / "two")
    return one, tmp_path / "two"


def test_times_and_drivers_may_differ(pair: tuple[Path, Path]) -> None:
    one, two = pair
    (one / "manifest.json").write_bytes(Manifest(9, 2, "done", 1, (), 1, {"ray": "3"}, "c").to_json())
    text = (one / "metrics.jsonl").read_text()
    (one / "metrics.jsonl").write_text(text.replace("3.0", "8.0"))
    assert compare.differences(one, two) == []


@pytest.mark.parametrize(
    "path, content, found",
    [
        ("policy/v0001/model.safetensors", b"other", "policy/v0001/model.safetensors: other bytes"),
        ("buffer/round=0001/chunk-00000-ff.parquet", b"", "buffer/round=0001/chunk-00000-ff.parquet: an orphan"),
        ("events.jsonl", b'{"event": "dri', "one/events.jsonl: the last line is torn"),
        (
            "metrics.jsonl",
            b'{"time": 1.0, "round": 1, "role": "mstep", "mstep/nll": 2.5}\n',
            "metrics.jsonl: (1, 'mstep') differs in ['mstep/nll']",
        ),
        (
            "manifest.json",
            Manifest(3, 2, "search", 1, (), 1, {}, "c").to_json(),
            "manifest.json: phase is search, not done",
        ),
    ],
)
def test_everything_else_is_a_difference(pair: tuple[Path, Path], path: str, content: bytes, found: str) -> None:
    one, two = pair
    (one / path).write_bytes(content)
    assert found in compare.differences(one, two)


def test_a_trajectory_that_is_accepted_twice_is_a_difference(pair: tuple[Path, Path]) -> None:
    one, two = pair
    for run in pair:
        data, sha256 = shards.encode(pa.table({"trajectory": [0, 0]}))
        (file,) = (run / "buffer").rglob("*.parquet")
        file.write_bytes(data)
        record = json.loads((run / "manifests/round-0001.json").read_text())
        record["shards"][0]["sha256"] = sha256
        (run / "manifests/round-0001.json").write_text(json.dumps(record))
    assert compare.differences(one, two) == ["round-0001.json: trajectories [0, 0]"]
