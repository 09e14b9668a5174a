"""What `retain.last` keeps and deletes, whatever interrupts it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dav_ray.config.schema import Config
from dav_ray.errors import RunError, StaleEpoch, UserError
from dav_ray.run_dir.manifest import ManifestStore, Shard, buffer_folder, round_manifest_path
from dav_ray.run_dir.records import RunLog
from dav_ray.run_dir.retention import MEASURE, Retention, kept, sweep_leftovers
from dav_ray.run_dir.storage.interface import Storage
from dav_ray.run_dir.storage.local import LocalStorage
from tests.support.runs import events, files, finish, masked_recipe, start, wait_for

SETTINGS: dict[str, Any] = {
    "model": {"kind": "masked", "path": "shipped:dna"},
    "reward": {"kind": "gc_content"},
}


def config(last: int | None, overlap: str = "none") -> Config:
    return Config.model_validate({**SETTINGS, "overlap": overlap, "retain": {"last": last}})


def close_rounds(storage: Storage, store: ManifestStore, rewards: dict[int, float | None]) -> None:
    """Rounds as a run leaves them; rewards: of each round's policy."""
    storage.write("evaluate/round-0000.parquet", b"pretrained")
    for round, reward in rewards.items():
        for chunk in range(2):
            path = f"{buffer_folder(round)}/chunk-{chunk:05d}-0.parquet"
            storage.write(path, b"rows")
            store.commit([Shard(path, "0", chunk, 4, round - 1)])
        for name in ("model.safetensors", "optimizer.safetensors"):
            storage.write(f"policy/v{round:04d}/{name}", b"weights")
        storage.write(f"evaluate/round-{round:04d}.parquet", b"samples")
        store.advance(policy_version=round)
        store.close_round({} if reward is None else {MEASURE: reward})


def driver(storage: Storage) -> ManifestStore:
    store = ManifestStore(storage)
    store.open("c0ffee", {})
    return store


def present(storage: Storage) -> dict[str, list[int]]:
    """The rounds that are there, by what is there of them."""
    found: dict[str, set[int]] = {}
    for path in storage.list(""):
        match = re.match(r"(policy/v|buffer/round=|evaluate/round-|manifests/round-)(\d+)", path)
        if match:
            found.setdefault(match[1].split("/")[0], set()).add(int(match[2]))
    return {name: sorted(rounds) for name, rounds in found.items()}


def retain(storage: Storage, store: ManifestStore, last: int | None, overlap: str = "none") -> Retention:
    return Retention(config(last, overlap).kept_rounds, storage, store, RunLog(storage, 1))


@pytest.mark.parametrize(
    ("closed", "best", "last", "rounds"),
    [(1, 1, 1, {1}), (2, None, 1, {1, 2}), (9, 4, 2, {1, 4, 8, 9}), (9, 9, 3, {1, 7, 8, 9}), (2, 1, 5, {1, 2})],
)
def test_the_first_the_best_and_the_last_are_kept(closed: int, best: int | None, last: int, rounds: set[int]) -> None:
    assert kept(closed, best, last) == rounds


def test_of_the_other_rounds_manifests_stay_and_the_rest_goes(storage: Storage) -> None:
    store = driver(storage)
    close_rounds(storage, store, {1: 0.1, 2: 0.3, 3: 0.9, 4: 0.9, 5: None, 6: 0.2, 7: 0.5})
    retain(storage, store, 2).sweep()
    assert present(storage) == {
        "policy": [1, 3, 6, 7],
        "buffer": [1, 3, 6, 7],
        "evaluate": [0, 1, 3, 6, 7],
        "manifests": [1, 2, 3, 4, 5, 6, 7],
    }
    line = json.loads(storage.read_lines("events.jsonl")[-1])
    assert (line["event"], line["round"], line["kept"], line["deleted"]) == ("retained", 7, [1, 3, 6, 7], [2, 4, 5])
    before = storage.list("")
    retain(storage, store, 2).sweep()
    assert storage.list("") == before  # and nothing is told of it


def test_a_run_that_goes_on_follows_the_best_round(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    store = driver(storage)
    keeper = retain(storage, store, 1)
    rewards, left = {1: 0.5, 2: 0.7, 3: 0.6, 4: 0.8, 5: 0.1, 6: None}, []
    for round, reward in rewards.items():
        close_rounds(storage, store, {round: reward})
        keeper.sweep()
        left.append(present(storage)["policy"])
    assert left == [[1], [1, 2], [1, 2, 3], [1, 4], [1, 4, 5], [1, 4, 6]]
    assert sorted(os.listdir(tmp_path / "buffer")) == ["round=0001", "round=0004", "round=0006"]


def test_what_is_not_closed_stays(storage: Storage) -> None:
    store = driver(storage)
    close_rounds(storage, store, {1: 0.9, 2: 0.1, 3: 0.2})
    storage.write("policy/v0004/model.safetensors", b"written, and not yet evaluated")
    for round in (4, 5):
        path = f"{buffer_folder(round)}/chunk-00000-0.parquet"
        storage.write(path, b"rows")
        store.commit([Shard(path, "0", 0, 4, round - 1)], ahead=round == 5)
    retain(storage, store, 1).sweep()
    assert present(storage)["policy"] == [1, 3, 4] and present(storage)["buffer"] == [1, 3, 4, 5]


def test_a_search_that_is_a_round_ahead_keeps_the_policy_that_it_uses(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    store = driver(storage)
    close_rounds(storage, store, {round: 1.0 / round for round in range(1, 7)})
    retain(storage, store, 1, overlap="round").sweep()
    lagging = config(1, "round")
    assert present(storage)["policy"] == [1, 5, 6]
    assert {lagging.searching_version(7), lagging.searching_version(8)} == {5, 6}


def test_by_default_nothing_goes(storage: Storage) -> None:
    store = driver(storage)
    close_rounds(storage, store, {round: 0.0 for round in range(1, 5)})
    before = storage.list("")
    retain(storage, store, None).sweep()
    assert storage.list("") == before


def test_a_round_of_which_nothing_is_known_stays(storage: Storage) -> None:
    store = driver(storage)
    close_rounds(storage, store, {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.9, 5: 0.5, 6: 0.5})
    storage.delete(round_manifest_path(2))
    storage.write(round_manifest_path(3), b"{torn")
    retain(storage, store, 1).sweep()
    assert present(storage)["policy"] == [1, 2, 3, 4, 6]


class Dies(LocalStorage):
    """A driver that dies when it has deleted `left` things."""

    left = 0

    def delete(self, path: str) -> None:
        self._count()
        super().delete(path)

    def delete_folder(self, prefix: str) -> None:
        self._count()
        super().delete_folder(prefix)

    def _count(self) -> None:
        if Dies.left == 0:
            raise RunError("storage", "died")
        Dies.left -= 1


def test_it_may_be_interrupted_anywhere_and_is_made_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = LocalStorage(str(tmp_path / "before"))
    close_rounds(before, driver(before), {1: 0.1, 2: 0.9, 3: 0.2, 4: 0.3, 5: 0.4})
    for left in range(13):
        storage = Dies(shutil.copytree(tmp_path / "before", tmp_path / str(left)).as_posix())
        store = driver(storage)
        monkeypatch.setattr(Dies, "left", left)
        if left < 12:  # a file and a folder for each of three kinds and two rounds
            with pytest.raises(RunError, match="died"):
                retain(storage, store, 1).sweep()
        assert {1, 2, 5} <= set(present(storage)["policy"]) & set(present(storage)["buffer"])
        monkeypatch.setattr(Dies, "left", 100)
        successor = driver(storage)
        retain(storage, successor, 1).sweep()
        assert present(storage)["policy"] == present(storage)["buffer"] == [1, 2, 5]
        assert present(storage)["evaluate"] == [0, 1, 2, 5]


def test_an_older_driver_deletes_nothing(storage: Storage) -> None:
    old = driver(storage)
    close_rounds(storage, old, {round: 0.0 for round in range(1, 5)})
    driver(storage)
    before = storage.list("")
    with pytest.raises(StaleEpoch):
        retain(storage, old, 1).sweep()
    assert storage.list("") == before


def test_what_is_kept_may_change_when_a_run_goes_on() -> None:
    assert config(None).identity() == config(3).identity()
    assert Config.model_validate(SETTINGS).retain.last is None


def test_a_policy_that_went_is_named_with_those_that_are_there(storage: Storage) -> None:
    import dav_ray

    store = driver(storage)
    storage.write("config.yaml", yaml.safe_dump(SETTINGS).encode())
    close_rounds(storage, store, {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4})
    retain(storage, store, 1).sweep()
    with pytest.raises(UserError) as caught:
        dav_ray.load(storage.uri, 2)
    assert str(caught.value).endswith("has no policy of version 2; allowed: 0, 1, 4 (0: the pretrained model)")


# -- what dead writers left -------------------------------------------------------------------------------------------


def test_old_leftovers_go_and_young_ones_stay(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    store = driver(storage)
    names = (".a.0123.tmp", "buffer/round=0001/.chunk.0123.tmp", ".v0002.0123.tmp/model.safetensors")
    for name in (*names, ".b.0123.tmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"torn")
    os.utime(tmp_path / ".v0002.0123.tmp", (0, 0))
    for name in names[:2]:
        os.utime(tmp_path / name, (0, 0))
    orphan = "buffer/round=0001/chunk-00003-0.parquet"
    storage.write(orphan, b"not committed")
    assert storage.list("") == [orphan, "manifest.json"]
    sweep_leftovers(storage, store, RunLog(storage, 1))
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {".b.0123.tmp", ".manifest.json.lock", ".events.jsonl.lock", "manifest.json", "events.jsonl"}
    line = json.loads(storage.read_lines("events.jsonl")[0])
    assert (line["event"], line["orphans"], line["leftovers"]) == ("swept", 1, 3)


def test_a_folder_goes_as_a_whole(storage: Storage) -> None:
    for path in ("policy/v0002/a", "policy/v0002/deep/b", "policy/v00021/c"):
        storage.write(path, b"x")
    storage.delete_folder("policy/v0002")
    storage.delete_folder("policy/v0002")
    assert storage.list("") == ["policy/v00021/c"]


# -- whole runs -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("kind", ["dav", "refine", "ahead"])
def test_a_run_that_deletes_is_killed_and_goes_on_to_the_same_end(tmp_path: Path, kind: str) -> None:
    changes: dict[str, Any] = {"rounds": 5, "overlap": "round" if kind == "ahead" else "none"}
    if kind == "refine":
        changes["search"] = {
            "kind": "refine",
            "candidates": 2,
            "alpha": 0.02,
            "steps": 4,
            "trajectories": 12,
            "chunk": 4,
        }
    words = [str(masked_recipe(tmp_path, **changes)), "--run-dir"]
    finish(start(tmp_path, *words, "whole"), 0, 600)
    process = start(tmp_path, *words, "run", "retain.last=2")
    wait_for(tmp_path / "run", "retained", 1, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finish(start(tmp_path, *words, "run", "retain.last=1"), 0, 600)

    run, whole = tmp_path / "run", tmp_path / "whole"
    found = present(LocalStorage(str(run)))
    assert {1, 5} <= set(found["policy"]) == set(found["buffer"]) < {1, 2, 3, 4, 5}
    assert found["manifests"] == [1, 2, 3, 4, 5] and found["evaluate"] == [0, *found["policy"]]
    for pattern in ("policy/*/*", "buffer/*/*.parquet"):
        mine, theirs = files(run, pattern), files(whole, pattern)
        assert mine == {path: theirs[path] for path in mine} and len(mine) >= 4
    assert sum(event["event"] == "retained" for event in events(run)) >= 2
    (run / "report.html").unlink()
    for command in (["report", "run"], ["sample", "run", "--num", "2", "--out", "new.fasta"], ["evaluate", "run"]):
        finish(command_line(tmp_path, *command), 0, 600)
    assert (run / "report.html").exists()


def command_line(folder: Path, *words: str) -> Any:
    command = [sys.executable, "-m", "dav_ray", *words]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
