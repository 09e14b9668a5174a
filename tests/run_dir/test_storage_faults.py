"""Storage that fails: torn writes, full and read-only disks, files that were removed or changed, a store that is away.

Each ends in one line that names what failed, or heals; nothing that was committed is harmed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from dav_ray.errors import RunError
from dav_ray.run_dir.manifest import Shard, ShardLost, round_manifest_path
from dav_ray.run_dir.storage import object_store
from dav_ray.run_dir.storage.interface import Storage
from dav_ray.run_dir.storage.local import LocalStorage
from dav_ray.run_dir.storage.local_files import FileFault
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.runtime.accepted import load_shard
from dav_ray.runtime.lease import Holder, Keeper, take
from dav_ray.runtime.search.starts import read
from tests.conftest import BUCKET
from tests.run_dir.test_manifest import driver, written_shard
from tests.support.deadlines import hung, stretched
from tests.support.runs import events, files, finish, masked_recipe, start, wait_for

# -- writers that die -------------------------------------------------------------------------------------------------

DIES = """
import os, signal, sys
from dav_ray.run_dir.storage.local import LocalStorage
from tests.support.deadlines import hung, stretched

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

os.replace = os.link = die
storage = LocalStorage(sys.argv[1])
version = storage.read_versioned("m")[1]
{"write": lambda: storage.write("m", b"new"), "create": lambda: storage.create("n", b"new"),
 "replace": lambda: storage.replace("m", b"new", version)}[sys.argv[2]]()
"""


@pytest.mark.parametrize("method", ["write", "create", "replace"])
def test_a_writer_that_dies_before_its_rename_changes_nothing(tmp_path: Path, method: str) -> None:
    storage = LocalStorage(str(tmp_path))
    storage.write("m", b"old")
    died = subprocess.run([sys.executable, "-c", textwrap.dedent(DIES), str(tmp_path), method])
    assert died.returncode == -signal.SIGKILL
    assert storage.list("") == ["m"] and storage.read("m") == b"old"
    assert sum(name.endswith(".tmp") for name in os.listdir(tmp_path)) == 1
    assert storage.sweep_leftovers(60) == 0 and storage.sweep_leftovers(-1) == 1
    storage.replace("m", b"new", storage.read_versioned("m")[1])  # no lock is left either
    assert [name for name in os.listdir(tmp_path) if name.endswith(".tmp")] == []


# -- disks that are full or read-only ---------------------------------------------------------------------------------


class Disk:
    """A small file system of its own."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.place)], check=True)

    def fill(self) -> None:
        """Until not a byte more fits."""
        with open(self.place / "filler", "ab", buffering=0) as file:
            try:
                for size in (65536, 4096, 1):
                    while file.write(b"x" * size) == size:
                        pass
            except OSError:
                return

    def free(self) -> None:
        (self.place / "filler").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"may not mount: {mounted.stderr.decode().strip()}")
    yield Disk(place)
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize(("fault", "reason"), [("full", "No space left on device"), ("ro", "Read-only file system")])
def test_a_disk_that_takes_nothing_is_named_and_harms_nothing(disk: Disk, fault: str, reason: str) -> None:
    storage = LocalStorage(str(disk.place / "run"))
    store = driver(storage)
    shard = written_shard(storage, 0)
    store.commit([shard])
    late = written_shard(storage, 1)
    storage.append_line("events.jsonl", "one")
    before = {path: storage.read(path) for path in storage.list("")}
    version = storage.read_versioned("manifest.json")[1]
    disk.fill() if fault == "full" else disk.remount("ro")

    for write in (
        lambda: storage.write("policy/v0001/weights", b"w" * 100_000),
        lambda: storage.create("manifests/round-0001.json", b"c" * 100_000),
        lambda: storage.replace("manifest.json", b"r" * 100_000, version),
        lambda: storage.append_line("events.jsonl", "l" * 100_000),
        lambda: store.commit([late]),
    ):
        with pytest.raises(RunError) as caught:
            write()
        assert isinstance(caught.value, FileFault) and caught.value.role == "storage"
        assert str(caught.value).startswith(f"storage: {storage.uri}/") and str(caught.value).endswith(f": {reason}")
    assert {path: storage.read(path) for path in before if path != "events.jsonl"} == {
        path: data for path, data in before.items() if path != "events.jsonl"
    }
    assert storage.read_lines("events.jsonl") == ["one"]

    disk.free() if fault == "full" else disk.remount("rw")
    storage.append_line("events.jsonl", "two")
    assert storage.read_lines("events.jsonl") == ["one", "two"]
    assert store.commit([late]) == (shard, late)
    assert not [path for path in disk.place.rglob("*.tmp")]


def test_commands_name_a_disk_that_takes_nothing(disk: Disk) -> None:
    (disk.place / "run").mkdir()
    disk.remount("ro")
    done = subprocess.run(
        [sys.executable, "-m", "dav_ray", "run", "digits", "--run-dir", str(disk.place / "run")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "is not writable" in done.stderr
    disk.remount("rw")
    disk.fill()
    done = subprocess.run(
        [sys.executable, "-m", "dav_ray", "run", "digits", "--run-dir", str(disk.place / "run")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"dav-ray: storage: {disk.place}/run/lease.json: No space left on device")
    assert done.stderr.count("\n") == 1


# -- files that were removed or changed -------------------------------------------------------------------------------


def test_a_removed_manifest_is_no_new_run(storage: Storage) -> None:
    store = driver(storage)
    shard = written_shard(storage, 0)
    store.commit([shard])
    storage.delete("manifest.json")
    with pytest.raises(RunError, match="manifest.json can't be read: it is absent"):
        store.advance(phase="fit")
    with pytest.raises(
        RunError, match=r"storage: .*manifest.json is absent, though there is a run \(buffer/.*put it back"
    ):
        driver(storage)
    assert storage.list("") == [shard.path]


@pytest.mark.parametrize("keep", [0, 1, 50])
def test_a_truncated_manifest_is_named(storage: Storage, keep: int) -> None:
    store = driver(storage)
    shard = written_shard(storage, 0)
    store.commit([shard])
    storage.write("manifest.json", storage.read("manifest.json")[:keep])
    for act in (lambda: driver(storage), lambda: store.advance(phase="fit"), lambda: store.sweep_orphans()):
        with pytest.raises(RunError, match="^storage: .*/manifest.json can't be read") as caught:
            act()
        assert "\n" not in str(caught.value)
    assert storage.read(shard.path) == b"rows"


def test_a_lost_shard_is_told_from_one_that_is_there(storage: Storage) -> None:
    store = driver(storage)
    changed, removed = written_shard(storage, 0), written_shard(storage, 1)
    store.commit([changed, removed])
    storage.write(changed.path, b"rot")
    storage.delete(removed.path)
    for shard, words in ((changed, "has sha256"), (removed, "is absent")):
        table, lost = load_shard(storage.uri, shard)
        assert table is None and isinstance(lost, ShardLost)
        assert lost.role == "storage" and shard.path in lost.cause and words in lost.cause


def test_a_warm_start_names_what_is_lost_of_the_last_round(storage: Storage) -> None:
    store = driver(storage)
    shard = written_shard(storage, 0)
    store.commit([shard])
    store.close_round({})
    storage.write(shard.path, b"rot")
    with pytest.raises(ShardLost, match="chunk-00000.*has sha256"):
        read(storage, 1)
    storage.delete(round_manifest_path(1))
    with pytest.raises(RunError, match="^storage: .*/manifests/round-0001.json is absent"):
        read(storage, 1)


# -- an object store that is away -------------------------------------------------------------------------------------


class Server:
    """An S3 server that keeps its objects while it is stopped."""

    def __init__(self) -> None:
        self._server = self._new(0)
        self.port = self._server.get_host_and_port()[1]

    def _new(self, port: int):  # type: ignore[no-untyped-def]
        from moto.server import ThreadedMotoServer

        server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        server.start()
        return server

    def stop(self) -> None:
        self._server.stop()

    def start(self) -> None:
        self._server = self._new(self.port)

    def away_for(self, seconds: float) -> threading.Timer:
        self.stop()
        timer = threading.Timer(seconds, self.start)
        timer.start()
        return timer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    import boto3

    found = Server()
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{found.port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    yield found
    found.stop()


def test_a_store_that_comes_back_costs_time_alone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "RETRY_TIMEOUT", timedelta(seconds=0.5))
    monkeypatch.setattr(object_store, "PAUSE_S", 0.2)
    storage = open_storage(f"s3://{BUCKET}/back")
    store = driver(storage)
    keeper = Keeper(storage, *take(storage, Holder.here(), print))
    shard = written_shard(storage, 0)
    back = server.away_for(1.5)  # longer than obstore tries by itself
    start_s = time.monotonic()
    assert store.commit([shard]) == (shard,)
    assert 1.0 < time.monotonic() - start_s < stretched(60)
    back.join()
    back = server.away_for(0.7)
    storage.append_line("events.jsonl", "one")
    back.join()
    back = server.away_for(0.7)
    keeper.renew()
    back.join()
    assert storage.read_lines("events.jsonl") == ["one"]
    assert json.loads(storage.read("manifest.json"))["shards"][0]["path"] == shard.path


def test_a_store_that_stays_away_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "RETRY_TIMEOUT", timedelta(seconds=0.5))
    monkeypatch.setattr(object_store, "OUTAGE_S", 1.0)
    monkeypatch.setattr(object_store, "PAUSE_S", 0.2)
    storage = open_storage(f"s3://{BUCKET}/gone")
    store = driver(storage)
    server.stop()
    for act in (lambda: store.advance(phase="fit"), lambda: storage.read("manifest.json"), lambda: storage.list("")):
        with pytest.raises(RunError, match=f"^storage: s3://{BUCKET}/gone/") as caught:
            act()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    server.start()
    assert store.advance(phase="fit").phase == "fit"


@pytest.mark.parametrize(
    ("tries_s", "soon_s"),
    [(0.5, 10.0), pytest.param(None, 30.0, marks=pytest.mark.slow)],  # slow: as long as obstore tries by itself
)
def test_a_store_that_was_never_there_is_named_soon(
    server: Server, monkeypatch: pytest.MonkeyPatch, tries_s: float | None, soon_s: float
) -> None:
    """It is not waited for as one is that was there."""
    if tries_s is not None:
        monkeypatch.setattr(object_store, "RETRY_TIMEOUT", timedelta(seconds=tries_s))
    server.stop()
    start_s = time.monotonic()
    with pytest.raises(RunError, match=f"^storage: s3://{BUCKET}/never/manifest.json"):
        driver(open_storage(f"s3://{BUCKET}/never"))
    assert time.monotonic() - start_s < stretched(soon_s)
    server.start()


# -- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe and an undisturbed run of it."""
    place = tmp_path_factory.mktemp("faults")
    finish(start(place, str(masked_recipe(place)), "--run-dir", "whole"), 0, 600)
    return place


def same(run: Path, whole: Path) -> None:
    for pattern in ("policy/*/*", "buffer/*/*.parquet"):
        assert files(run, pattern) == files(whole, pattern) != {}


def in_phase(whole: Path, run: Path, phase: str) -> list[Shard]:
    """A copy of a finished run as it was when round 2 was in that phase; the round's shards."""
    shutil.copytree(whole, run)
    manifest = json.loads((run / "manifest.json").read_text())
    shards = json.loads((run / round_manifest_path(2)).read_text())["shards"]
    manifest |= {"round": 2, "closed": 1, "phase": phase, "policy_version": 1, "shards": shards}
    (run / "manifest.json").write_text(json.dumps(manifest))
    (run / round_manifest_path(2)).unlink()
    shutil.rmtree(run / "policy/v0002")
    return [Shard(**shard) for shard in shards]


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("phase", ["search", "fit"])
def test_lost_shards_of_the_open_round_are_searched_again(folder: Path, phase: str) -> None:
    run, whole = folder / f"lost-{phase}", folder / "whole"
    shards = in_phase(whole, run, phase)
    (run / shards[0].path).write_bytes(b"rot")
    (run / shards[2].path).unlink()
    finish(start(folder, str(folder / "tiny.yaml"), "--run-dir", run.name), 0, 600)
    same(run, whole)
    lost = [event["cause"] for event in events(run) if event["event"] == "shard_lost"]
    assert len(lost) == 2 and "has sha256" in lost[0] and "is absent" in lost[1]
    again = [event for event in events(run) if event["event"] == "chunk_committed" and event["epoch"] == 2]
    assert sorted(event["chunk"] for event in again) == [0, 2]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_lost_shard_that_comes_out_otherwise_ends_the_run(folder: Path) -> None:
    run = folder / "other"
    shards = in_phase(folder / "whole", run, "search")
    text = (run / "manifest.json").read_text().replace(shards[1].sha256, "0" * 64)
    (run / "manifest.json").write_text(text)
    output = finish(start(folder, str(folder / "tiny.yaml"), "--run-dir", run.name), 1, 600)
    line = next(line for line in output.splitlines() if line.startswith("dav-ray: "))
    assert line.startswith("dav-ray: storage: shard buffer/round=0002/chunk-00001-") and shards[1].sha256 in line
    assert [Shard(**s).sha256 for s in json.loads((run / "manifest.json").read_text())["shards"]][1] == "0" * 64


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("what", ["shard", "manifest"])
def test_what_a_warm_start_needs_is_named_where_it_is_lost(folder: Path, what: str) -> None:
    search = {"kind": "refine", "candidates": 2, "alpha": 0.02, "steps": 4, "trajectories": 12, "chunk": 4}
    place = folder / f"refine-{what}"
    place.mkdir()
    words = [str(masked_recipe(place, search=search)), "--run-dir", "run"]
    process = start(place, *words)
    wait_for(place / "run", "chunk_committed", 4, process)
    process.send_signal(signal.SIGTERM)
    finish(process, 143, 60)
    shard = json.loads((place / "run" / round_manifest_path(1)).read_text())["shards"][0]["path"]
    gone = shard if what == "shard" else round_manifest_path(1)
    (place / "run" / gone).rename(place / "elsewhere")
    output = finish(start(place, *words), 1, 600)
    assert "dav-ray: storage: " in output and gone in output and "absent" in output
    (place / "elsewhere").rename(place / "run" / gone)
    finish(start(place, *words), 0, 600)


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize(("fault", "reason"), [("full", "No space left on device"), ("ro", "Read-only file system")])
def test_a_run_whose_disk_fails_goes_on_once_it_is_mended(folder: Path, disk: Disk, fault: str, reason: str) -> None:
    disk.remount("size=64m")
    run = disk.place / "run"
    words = [str(folder / "tiny.yaml"), "--run-dir", str(run)]
    process = start(folder, *words)
    wait_for(run, "chunk_committed", 2, process)
    disk.fill() if fault == "full" else disk.remount("ro")
    output, _ = process.communicate(timeout=hung(600))
    assert process.returncode in (1, 2), output  # 2 where it is a node's first look at the run directory that fails
    lines = [line for line in output.splitlines() if line.startswith("dav-ray: ")]
    assert len(lines) == 1 and reason in lines[0] and str(run) in lines[0] and "Traceback" not in output
    disk.free() if fault == "full" else disk.remount("rw")
    finish(start(folder, *words), 0, 600)
    same(run, folder / "whole")
