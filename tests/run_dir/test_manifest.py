"""The manifest on a local folder and on a real S3 server: who may write, and what a crash leaves."""

from __future__ import annotations

import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from dav_ray.errors import RunError, StaleEpoch, UserError
from dav_ray.run_dir.manifest import Manifest, ManifestStore, Shard
from dav_ray.run_dir.storage.interface import Conflict, Storage, Version
from dav_ray.run_dir.storage.local import LocalStorage
from tests.support.deadlines import hung

CONFIG = "c0ffee"
VERSIONS = {"torch": "2.13.0", "ray": "2.60.0"}


def driver(storage: Storage) -> ManifestStore:
    store = ManifestStore(storage)
    store.open(CONFIG, VERSIONS)
    return store


def written_shard(
    storage: Storage, chunk: int, content: bytes = b"rows", round: int = 1, policy_version: int = 0
) -> Shard:
    digest = hashlib.sha256(content).hexdigest()
    path = f"buffer/round={round:04d}/chunk-{chunk:05d}-{digest}.parquet"
    storage.write(path, content)
    return Shard(path, digest, chunk, rows=4, policy_version=policy_version)


class LostAnswers(LocalStorage):
    """Each replace lands, and then reports a conflict, as after a retried put whose first answer was lost."""

    def replace(self, path: str, data: bytes, version: Version) -> Version:
        super().replace(path, data, version)
        raise Conflict(path)


def test_a_fresh_run(storage: Storage) -> None:
    store = ManifestStore(storage)
    assert store.load() is None
    with pytest.raises(RuntimeError, match="open comes first"):
        _ = store.current
    manifest = store.open(CONFIG, VERSIONS)
    assert manifest == store.current == store.load()
    assert manifest == Manifest(1, 1, "search", 0, (), 0, VERSIONS, CONFIG)
    assert storage.list("") == ["manifest.json"]


def test_json_is_stable_and_readable(storage: Storage) -> None:
    store = driver(storage)
    shard = written_shard(storage, 0)
    store.commit([shard])
    text = storage.read("manifest.json").decode()
    assert text == json.dumps(json.loads(text), sort_keys=True, indent=1) + "\n"
    assert json.loads(text)["shards"] == [
        {"path": shard.path, "sha256": shard.sha256, "chunk": 0, "rows": 4, "policy_version": 0}
    ]
    assert Manifest.from_json(text.encode()) == store.current


def test_takeover_raises_the_epoch_and_refuses_the_old_driver(storage: Storage) -> None:
    old = driver(storage)
    shard = written_shard(storage, 0)
    old.commit([shard])
    new = ManifestStore(storage)
    taken = new.open(CONFIG, {"torch": "2.13.1"})
    assert taken == replace(old.current, epoch=2, versions={"torch": "2.13.1"})
    late = written_shard(storage, 1)
    for write in (
        lambda: old.commit([late]),
        lambda: old.advance(phase="fit"),
        lambda: old.close_round({}),
        lambda: old.sweep_orphans(),
    ):
        with pytest.raises(StaleEpoch, match="epoch 1 is now 2") as caught:
            write()
        assert (caught.value.epoch, caught.value.stored) == (1, 2)
    assert new.load() == taken
    assert storage.exists(late.path) and storage.list("manifests") == []
    assert new.commit([late]) == (shard, late)


def test_racing_drivers_get_distinct_epochs(storage: Storage) -> None:
    barrier = threading.Barrier(5)

    def start(_: int) -> ManifestStore:
        barrier.wait(timeout=hung(20))
        return driver(storage)

    with ThreadPoolExecutor(5) as pool:
        stores = list(pool.map(start, range(5)))
    assert sorted(store.current.epoch for store in stores) == [1, 2, 3, 4, 5]
    for store in stores:
        if store.current.epoch < 5:
            with pytest.raises(StaleEpoch):
                store.advance(phase="fit")
    assert max(stores, key=lambda store: store.current.epoch).advance(phase="fit").epoch == 5


def test_another_configuration_is_refused(storage: Storage) -> None:
    before = driver(storage).current
    with pytest.raises(UserError, match="another configuration.*c0ffee.*decaf"):
        ManifestStore(storage).open("decaf", VERSIONS)
    assert ManifestStore(storage).load() == before


def test_commit_is_idempotent_and_in_chunk_order(storage: Storage) -> None:
    store = driver(storage)
    shards = [written_shard(storage, chunk) for chunk in range(3)]
    assert store.commit([shards[2], shards[0]]) == (shards[0], shards[2])
    before = storage.read("manifest.json")
    assert store.commit([shards[0]]) == (shards[0], shards[2])
    assert storage.read("manifest.json") == before
    assert store.commit([shards[0], shards[1]]) == tuple(shards)
    assert driver(storage).current.shards == tuple(shards)


def test_the_first_shard_of_a_chunk_stays(storage: Storage) -> None:
    store = driver(storage)
    first, second = written_shard(storage, 0, b"first"), written_shard(storage, 0, b"second")
    assert first.sha256 != second.sha256
    store.commit([first])
    assert store.commit([second]) == (first,)
    other, rival = written_shard(storage, 1, b"a"), written_shard(storage, 1, b"b")
    assert store.commit([other, rival]) == (first, other)


def test_a_lost_shard_gives_way_to_the_one_that_was_searched_again(storage: Storage) -> None:
    """Other bits, as another kind of GPU gives; what is there stays, and an answer that was lost changes nothing."""
    store = driver(storage)
    first, kept = written_shard(storage, 0, b"first"), written_shard(storage, 1)
    store.commit([first, kept])
    second, rival = written_shard(storage, 0, b"second"), written_shard(storage, 1, b"rival")
    assert store.commit([second, rival], lost=[first]) == (second, kept)
    third = written_shard(storage, 0, b"third")
    assert store.commit([third], lost=[first]) == (second, kept) == store.commit([second], lost=[first])
    assert driver(storage).current.shards == (second, kept)
    ahead = written_shard(storage, 0, b"first", round=2)
    again = written_shard(storage, 0, b"second", round=2)
    newer = driver(storage)
    newer.commit([ahead], ahead=True)
    assert newer.commit([again], ahead=True, lost=[ahead]) == (again,)


def test_commit_refuses_what_is_not_of_this_round(storage: Storage) -> None:
    store = driver(storage)
    store.commit([written_shard(storage, 0)])
    with pytest.raises(ValueError, match="round 1's folder"):
        store.commit([written_shard(storage, 1, round=2)])
    with pytest.raises(ValueError, match=r"policy versions \[0, 1\]"):
        store.commit([written_shard(storage, 1, policy_version=1)])
    assert len(store.current.shards) == 1


def test_a_round_from_search_to_close(storage: Storage) -> None:
    store = driver(storage)
    shard = written_shard(storage, 0)
    store.commit([shard])
    store.advance(phase="fit")
    store.advance(phase="evaluate", policy_version=1)
    with pytest.raises(ValueError, match="round 1 is not closed"):
        store.finish()
    opened = store.close_round({"reward/mean": 0.5})
    assert opened == Manifest(1, 2, "search", 1, (), 1, VERSIONS, CONFIG)
    assert store.load() == opened
    assert store.round_manifest(1) == {
        "round": 1,
        "policy_version": 0,
        "shards": [{"path": shard.path, "sha256": shard.sha256, "chunk": 0, "rows": 4, "policy_version": 0}],
        "summary": {"reward/mean": 0.5},
    }
    assert storage.list("manifests") == ["manifests/round-0001.json"]
    with pytest.raises(FileNotFoundError):
        store.round_manifest(2)
    next_shard = written_shard(storage, 0, round=2, policy_version=1)
    assert store.commit([next_shard]) == (next_shard,)


def test_a_round_manifest_is_never_rewritten(storage: Storage) -> None:
    store = driver(storage)
    shard = written_shard(storage, 0)
    store.commit([shard])
    open_round = store.current.to_json()
    store.close_round({"time/estep_s": 1.0})
    storage.write("manifest.json", open_round)  # as if the driver had died between the two writes of closing
    successor = driver(storage)
    assert successor.current.round == 1
    successor.close_round({"time/estep_s": 2.0})
    assert successor.current.closed == 1
    assert successor.round_manifest(1)["summary"] == {"time/estep_s": 1.0}

    storage.write("manifest.json", replace(successor.current, round=1, closed=0).to_json())
    with pytest.raises(RunError, match="round-0001.json names other shards"):
        driver(storage).close_round({"time/estep_s": 3.0})
    assert store.round_manifest(1)["shards"][0]["path"] == shard.path


def test_a_finished_run_is_left_as_it_is(storage: Storage) -> None:
    store = driver(storage)
    store.commit([written_shard(storage, 0)])
    store.close_round({})
    finished = store.finish()
    assert (finished.phase, finished.closed) == ("done", 1)
    before = storage.read("manifest.json")
    again = driver(storage)
    assert again.current == finished and again.finish() == finished
    with pytest.raises(ValueError, match="finished"):
        again.commit([written_shard(storage, 0, round=2)])
    with pytest.raises(ValueError, match="finished"):
        again.close_round({})
    assert storage.list("manifests") == ["manifests/round-0001.json"]
    assert storage.read("manifest.json") == before


def test_an_own_write_that_landed_is_recognised(tmp_path: Path) -> None:
    store = driver(LocalStorage(str(tmp_path)))
    shard = written_shard(LocalStorage(str(tmp_path)), 0)
    store._storage = LostAnswers(str(tmp_path))
    assert store.commit([shard]) == (shard,)
    assert store.advance(phase="fit", policy_version=1).phase == "fit"
    closed = store.close_round({})
    assert (closed.round, closed.closed, closed.epoch) == (2, 1, 1)
    assert store.load() == closed


def test_a_takeover_is_proved_only_by_a_swap_that_succeeded(tmp_path: Path) -> None:
    # Two drivers that start at once want the same bytes; a conflict must not be read as "mine has landed".
    with pytest.raises(RunError, match="other drivers took .* over 20 times"):
        ManifestStore(LostAnswers(str(tmp_path))).open(CONFIG, VERSIONS)


def test_what_is_committed_ahead_becomes_the_next_rounds(storage: Storage) -> None:
    store = driver(storage)
    mine, ahead = written_shard(storage, 0), [written_shard(storage, chunk, round=2) for chunk in range(3)]
    store.commit([mine])
    store.advance(phase="fit")
    assert store.commit([ahead[2], ahead[0]], ahead=True) == (ahead[0], ahead[2])
    assert store.commit([ahead[0]], ahead=True) == (ahead[0], ahead[2])
    assert (store.current.round, store.current.phase, store.current.shards) == (1, "fit", (mine,))
    assert store.current.shards_of(1) == (mine,) and store.current.shards_of(2) == (ahead[0], ahead[2])
    with pytest.raises(ValueError, match="round 3"):
        store.current.shards_of(3)

    successor = driver(storage)  # as after a kill in the middle of a search ahead
    assert successor.current.ahead == (ahead[0], ahead[2])
    successor.advance(phase="evaluate", policy_version=1)
    opened = successor.close_round({})
    assert (opened.round, opened.phase, opened.shards, opened.ahead) == (2, "search", (ahead[0], ahead[2]), ())
    assert [shard["chunk"] for shard in successor.round_manifest(1)["shards"]] == [0]
    assert successor.commit([ahead[1]]) == tuple(ahead)
    successor.close_round({})
    assert successor.round_manifest(2)["policy_version"] == 0  # that searched, though version 1 was there by then


def test_commit_ahead_refuses_other_rounds_and_other_versions(storage: Storage) -> None:
    store = driver(storage)
    store.commit([written_shard(storage, 0)])
    store.commit([written_shard(storage, 0, round=2, policy_version=1)], ahead=True)  # the open round has version 0
    for round in (1, 3):
        with pytest.raises(ValueError, match="round 2's folder"):
            store.commit([written_shard(storage, 1, round=round, policy_version=1)], ahead=True)
    with pytest.raises(ValueError, match=r"policy versions \[1, 2\]"):
        store.commit([written_shard(storage, 1, round=2, policy_version=2)], ahead=True)
    assert len(store.current.shards) == len(store.current.ahead) == 1


def test_a_run_with_shards_ahead_is_not_finished(storage: Storage) -> None:
    store = driver(storage)
    store.commit([written_shard(storage, 0, round=2)], ahead=True)
    with pytest.raises(ValueError, match="is not closed"):
        store.finish()


def test_a_manifest_of_before_there_was_an_ahead_is_read(storage: Storage) -> None:
    store = driver(storage)
    shard = written_shard(storage, 0)
    store.commit([shard])
    old = json.loads(storage.read("manifest.json"))
    assert old.pop("ahead") == []
    storage.write("manifest.json", json.dumps(old).encode())
    successor = driver(storage)
    assert (successor.current.shards, successor.current.ahead) == ((shard,), ())


def test_sweep_takes_the_orphans_of_a_search_ahead_too(storage: Storage) -> None:
    store = driver(storage)
    named = [written_shard(storage, 0), written_shard(storage, 0, round=2)]
    orphans = [written_shard(storage, 1).path, written_shard(storage, 1, round=2).path]
    store.commit(named[:1])
    store.commit(named[1:], ahead=True)
    assert store.sweep_orphans() == orphans
    assert storage.list("buffer") == [shard.path for shard in named]


def test_sweep_takes_only_orphans_of_the_open_round(storage: Storage) -> None:
    store = driver(storage)
    closed_orphan = written_shard(storage, 7)
    store.commit([written_shard(storage, 0)])
    store.close_round({})
    named = written_shard(storage, 0, round=2)
    in_flight = written_shard(storage, 1, round=2)
    orphans = sorted(written_shard(storage, 1, content, round=2).path for content in (b"x", b"y"))
    storage.write("buffer/round=0002/notes.txt", b"")
    store.commit([named])
    assert store.sweep_orphans(keep_open={in_flight.path}) == orphans
    kept = [named.path, in_flight.path, "buffer/round=0002/notes.txt"]
    assert storage.list("buffer/round=0002") == sorted(kept)
    assert storage.exists(closed_orphan.path)
    assert store.sweep_orphans() == [in_flight.path]
    assert store.verify(named) == b"rows"


def test_verify_names_a_shard_that_changed_or_went(storage: Storage) -> None:
    store = driver(storage)
    shard = written_shard(storage, 3, b"rows")
    assert store.verify(shard) == b"rows"
    storage.write(shard.path, b"rot")
    with pytest.raises(RunError, match="chunk-00003.*of chunk 3 has sha256"):
        store.verify(shard)
    storage.delete(shard.path)
    with pytest.raises(RunError, match="chunk-00003.*is absent"):
        store.verify(shard)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"not json", b'{"shards": [{"path": 1}]}'])
def test_a_damaged_manifest_is_named(tmp_path: Path, content: bytes) -> None:
    storage = LocalStorage(str(tmp_path))
    storage.write("manifest.json", content)
    with pytest.raises(RunError, match="manifest.json can't be read"):
        driver(storage)


def test_a_manifest_that_went_back_is_refused(storage: Storage) -> None:
    first = driver(storage).current
    store = driver(storage)
    storage.write("manifest.json", first.to_json())
    with pytest.raises(RunError, match="fell from epoch 2 to 1"):
        store.advance(phase="fit")
