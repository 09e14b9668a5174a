"""Both storages against one set of expectations: a local folder, and a real S3 server on this machine."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dav_ray.errors import DavRayError, RewardError, RunError, StaleEpoch, UserError
from dav_ray.run_dir.storage.folders import download, upload
from dav_ray.run_dir.storage.interface import AlreadyExists, Conflict, Storage, Version
from dav_ray.run_dir.storage.local import LocalStorage
from dav_ray.run_dir.storage.uri import open_storage
from tests.support.deadlines import hung

THREADS = 30


def race(task: Callable[[int], object]) -> list[object]:
    """Run `task(0..THREADS-1)` at once; each one's value, or the DavRayError that it raised."""
    barrier = threading.Barrier(THREADS)

    def start(index: int) -> object:
        barrier.wait(timeout=hung(20))
        try:
            return task(index)
        except DavRayError as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(start, range(THREADS)))


def test_write_read_overwrite_delete(storage: Storage) -> None:
    path = "buffer/round=0003/chunk-00012.parquet"
    assert not storage.exists(path)
    with pytest.raises(FileNotFoundError):
        storage.read(path)
    storage.write(path, b"one")
    storage.write(path, b"\x00two\xff")
    assert storage.exists(path)
    assert storage.read(path) == b"\x00two\xff"
    assert not storage.exists("buffer/round=0003")
    storage.delete(path)
    storage.delete(path)
    assert not storage.exists(path)


def test_an_object_larger_than_one_part_of_an_upload(storage: Storage) -> None:
    data = os.urandom(12 * 2**20)
    storage.write("policy/v0001/weights.safetensors", data)
    assert storage.read("policy/v0001/weights.safetensors") == data


def test_list_is_sorted_recursive_and_by_folder(storage: Storage) -> None:
    paths = ["a/2", "a/b/1", "a/1", "ab/1", "c"]
    for path in paths:
        storage.write(path, b"x")
    assert storage.list("a") == storage.list("a/") == ["a/1", "a/2", "a/b/1"]
    assert storage.list("") == sorted(paths)
    assert storage.list("absent") == storage.list("c") == []


def test_create_is_refused_where_something_else_is(storage: Storage) -> None:
    version = storage.create("lease", b"mine")
    assert storage.read_versioned("lease") == (b"mine", version)
    with pytest.raises(AlreadyExists, match="lease"):
        storage.create("lease", b"yours")
    assert storage.read("lease") == b"mine"


def test_create_again_with_the_same_content_is_success(storage: Storage) -> None:
    version = storage.create("lease", b"mine")
    assert storage.create("lease", b"mine") == version
    assert storage.replace("lease", b"next", version) != version


def test_create_race_has_one_winner(storage: Storage) -> None:
    results = race(lambda index: storage.create("lease", b"%d" % index))
    winners = [index for index, result in enumerate(results) if isinstance(result, Version)]
    assert len(winners) == 1
    assert sum(isinstance(result, AlreadyExists) for result in results) == THREADS - 1
    assert storage.read("lease") == b"%d" % winners[0]
    assert storage.list("") == ["lease"]


def test_stale_replace_is_refused(storage: Storage) -> None:
    first = storage.create("m", b"1")
    second = storage.replace("m", b"2", first)
    with pytest.raises(Conflict):
        storage.replace("m", b"3", first)
    assert storage.read_versioned("m") == (b"2", second)
    storage.replace("m", b"3", second)
    assert storage.read("m") == b"3"


def test_replace_of_an_absent_object_is_refused(storage: Storage) -> None:
    version = storage.create("m", b"1")
    storage.delete("m")
    with pytest.raises(Conflict):
        storage.replace("m", b"2", version)
    assert not storage.exists("m")


def test_replace_race_has_one_winner(storage: Storage) -> None:
    version = storage.create("m", b"start")
    results = race(lambda index: storage.replace("m", b"%d" % index, version))
    winners = [index for index, result in enumerate(results) if isinstance(result, Version)]
    assert len(winners) == 1
    assert sum(isinstance(result, Conflict) for result in results) == THREADS - 1
    assert storage.read_versioned("m") == (b"%d" % winners[0], results[winners[0]])


def test_counter_by_compare_and_swap_loses_nothing(storage: Storage) -> None:
    storage.create("count", b"0")

    def increment(_: int) -> None:
        while True:
            data, version = storage.read_versioned("count")
            try:
                storage.replace("count", b"%d" % (int(data) + 1), version)
                return
            except Conflict:
                continue

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(increment, range(12)))
    assert storage.read("count") == b"12"


def test_lines_come_back_in_order(storage: Storage) -> None:
    assert storage.read_lines("metrics.jsonl") == []
    lines = [f'{{"step": {step}, "note": "\u2028é"}}' for step in range(12)]
    for line in lines[:7]:
        storage.append_line("metrics.jsonl", line)
    successor = open_storage(storage.uri)
    for line in lines[7:]:
        successor.append_line("metrics.jsonl", line)
    storage.append_line("metrics.jsonl", "last")
    assert storage.read_lines("metrics.jsonl") == [*lines, "last"]
    with pytest.raises(ValueError, match="one line"):
        storage.append_line("metrics.jsonl", "a\nb")


def test_identical_lines_of_racing_writers_are_all_kept(storage: Storage) -> None:
    def append(_: int) -> None:
        open_storage(storage.uri).append_line("events.jsonl", "joined")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(append, range(6)))
    assert storage.read_lines("events.jsonl") == ["joined"] * 6


def test_parts_are_joined_in_numeric_order(storage: Storage) -> None:
    for number in (1000000, 999999, 2):
        storage.write(f"metrics/part-{number:06d}.jsonl", b"%d\n" % number)
    storage.write("metrics/part-000003.jsonl", b"3\ntorn")
    storage.write("metrics/notes.txt", b"not a part\n")
    assert storage.read_lines("metrics.jsonl") == ["2", "3", "999999", "1000000"]


def test_torn_last_line_is_ignored_then_dropped(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    storage.append_line("events.jsonl", "whole")
    with open(tmp_path / "events.jsonl", "ab") as file:
        file.write(b'{"half": ')
    assert storage.read_lines("events.jsonl") == ["whole"]
    storage.append_line("events.jsonl", "next")
    assert (tmp_path / "events.jsonl").read_bytes() == b"whole\nnext\n"


def test_folders_travel_both_ways(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "config.json").write_bytes(b"{}")
    (source / "deep" / "weights").write_bytes(b"\x01\x02")
    upload(storage, source, "policy/v0003")
    assert storage.list("policy") == ["policy/v0003/config.json", "policy/v0003/deep/weights"]
    storage.write("policy/v00031/other", b"")
    download(storage, "policy/v0003", tmp_path / "target")
    found = {path.relative_to(tmp_path / "target").as_posix() for path in (tmp_path / "target").rglob("*")}
    assert found == {"config.json", "deep", "deep/weights"}
    assert (tmp_path / "target/deep/weights").read_bytes() == b"\x01\x02"
    with pytest.raises(FileNotFoundError):
        download(storage, "policy/v0004", tmp_path / "nothing")
    with pytest.raises(FileNotFoundError):
        upload(storage, tmp_path / "absent", "policy/v0005")


def test_pickle_carries_the_uri_alone(storage: Storage) -> None:
    storage.append_line("metrics.jsonl", "1")  # connected, and has counted its parts
    copy = pickle.loads(pickle.dumps(storage))
    assert copy == storage
    assert b"\x06_store" not in pickle.dumps(storage)  # the name of the attribute, six letters long
    copy.append_line("metrics.jsonl", "2")
    assert storage.read_lines("metrics.jsonl") == ["1", "2"]


def test_paths_stay_inside_the_run_directory(storage: Storage) -> None:
    for path in ("../other/manifest.json", "/etc/passwd", "a/../../b"):
        with pytest.raises(ValueError, match="inside the run directory"):
            storage.write(path, b"")


def test_write_aside_and_lock_files_are_not_listed(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    storage.replace("m", b"2", storage.create("m", b"1"))
    (tmp_path / ".m.0123.tmp").write_bytes(b"a writer died here")
    assert (tmp_path / ".m.lock").exists()
    assert storage.list("") == ["m"]


def test_failed_local_write_leaves_the_old_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(str(tmp_path))
    storage.write("m", b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError, match="storage: .*m: disk full"):
        storage.write("m", b"new")
    assert storage.read("m") == b"old"
    assert os.listdir(tmp_path) == ["m"]


def test_open_storage_resolves_local_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_storage("runs/digits") == LocalStorage(str(tmp_path / "runs/digits"))
    assert open_storage(f"file://{tmp_path}/a%20b") == LocalStorage(f"{tmp_path}/a b")
    assert open_storage("gs://bucket/run/").uri == "gs://bucket/run"


@pytest.mark.parametrize("uri", ["ray://head:10001", "http://host/x", "s3://", "s3:///x", "file://host/x", "az://b"])
def test_open_storage_refuses_other_uris(uri: str) -> None:
    with pytest.raises(UserError) as caught:
        open_storage(uri)
    assert uri in str(caught.value) and len(caught.value.lines) == 1


def test_a_missing_bucket_is_the_users_mistake(s3: str) -> None:
    storage = open_storage("s3://no-such-bucket/run")
    for put in (storage.write, storage.create):
        with pytest.raises(UserError, match="s3://no-such-bucket/run.*does not exist"):
            put("marker", b"")
    with pytest.raises(RunError, match="^storage: s3://no-such-bucket/run/"):
        storage.list("")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (UserError("a: unknown key"), "a: unknown key"),
        (UserError(["a: unknown key", "b: not a number"]), "a: unknown key\nb: not a number"),
        (RunError("search", "out of\n memory"), "search: out of memory"),
        (RewardError("clip", "3", "nan"), "reward: clip gave nan for chunk 3"),
        (
            StaleEpoch(epoch=2, stored=5),
            "driver: another driver has taken over this run: epoch 2 is now 5",
        ),
        (AlreadyExists("m exists"), "m exists"),
        (Conflict("m has changed"), "m has changed"),
    ],
)
def test_errors_survive_pickle(error: DavRayError, text: str) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert str(copy) == str(error) == text
