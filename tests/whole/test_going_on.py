"""A run that goes on, or ends earlier: the same bits, nothing discarded, and one list of what may change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from dav_ray.config.identity import may_change, reason, rule
from dav_ray.config.keys.describe import fields
from dav_ray.config.recipe.differences import differing_keys
from dav_ray.config.recipe.load import Recipe, load
from dav_ray.config.recipe.same_run import earlier_identities
from dav_ray.errors import UserError
from dav_ray.run_dir.manifest import MANIFEST, Manifest, ManifestStore
from dav_ray.run_dir.records import RunLog
from dav_ray.run_dir.storage.interface import Storage
from dav_ray.run_dir.storage.local import LocalStorage
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.runtime import driver
from dav_ray.runtime.watch.progress import Progress
from dav_ray.runtime.watch.round_reports import write_last
from tests.run_dir.test_manifest import written_shard
from tests.support.runs import events

# -- ends and openings, without a cluster -----------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("model: {path: org/name}\nprompts: [cat]\nreward: {kind: brightness}\nrounds: 8\n")
    return path


def begun(storage: Storage, recipe: Recipe, closed: int = 3) -> ManifestStore:
    """A run of which some rounds are closed, each with a policy and an evaluation."""
    store = ManifestStore(storage)
    store.open(recipe.config.identity(), {})
    storage.write("config.yaml", recipe.yaml.encode())
    log = RunLog(storage, 1)
    log.metrics(0, "evaluate", {"evaluate/reward_mean": 0.0, "evaluate/reward_std": 1.0})
    for number in range(1, closed + 1):
        store.commit([written_shard(storage, 0, round=number, policy_version=number - 1)])
        store.advance(phase="evaluate", policy_version=number)
        storage.write(f"policy/v{number:04d}/pytorch_lora_weights.safetensors", b"weights")
        log.metrics(number, "evaluate", {"evaluate/reward_mean": float(number), "evaluate/reward_std": 1.0})
        store.close_round({})
    return store


def manifest_of(storage: Storage) -> Manifest:
    stored = ManifestStore(storage).load()
    assert stored is not None
    return stored


@pytest.mark.parametrize("asked", [1, 3])
def test_fewer_rounds_end_the_run_at_those_that_are_closed(
    recipe: Path, storage: Storage, asked: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Chunks of the open round, and those ahead of it, stay named; the same command once more changes nothing."""
    store = begun(storage, load(str(recipe)))
    kept = [written_shard(storage, 0, round=4, policy_version=3)]
    ahead = [written_shard(storage, 0, round=5, policy_version=3)]
    store.commit(kept)
    store.advance(phase="fit")
    store.commit(ahead, ahead=True)
    less = load(str(recipe), [f"rounds={asked}"])

    driver.run(less, storage.uri, "local")
    ended = manifest_of(storage)
    assert (ended.phase, ended.closed, ended.policy_version) == ("done", 3, 3)
    assert (list(ended.shards), list(ended.ahead)) == (kept, ahead)
    assert yaml.safe_load(storage.read("config.yaml"))["rounds"] == 3 and storage.exists("report.html")
    said = capsys.readouterr().out
    assert "the run ends at round 3; 2 accepted chunks are kept" in said
    assert ("rounds = 1: 3 are closed, and none is discarded" in said) == (asked == 1)

    before = {path: storage.read(path) for path in storage.list("")}
    driver.run(less, storage.uri, "local")
    assert "this run is finished (3 rounds)" in capsys.readouterr().out
    assert {path: storage.read(path) for path in storage.list("")} == before


def test_a_run_that_ended_early_opens_with_what_it_had_accepted(recipe: Path, storage: Storage) -> None:
    store = begun(storage, load(str(recipe)))
    kept = written_shard(storage, 0, round=4, policy_version=3)
    store.commit([kept])
    store.advance(phase="fit")
    driver.run(load(str(recipe), ["rounds=2"]), storage.uri, "local")

    again = ManifestStore(storage)
    longer = load(str(recipe), ["rounds=10"]).config
    assert again.open(longer.identity(), {}).phase == "done"  # as a reader of a finished run has it
    opened = again.open(longer.identity(), {}, go_on=True)
    assert (opened.phase, opened.round, opened.closed, opened.shards) == ("search", 4, 3, (kept,))
    assert opened.epoch == store.current.epoch + 2 and opened == manifest_of(storage)
    again.advance(phase="fit")  # it is open


def test_a_finished_run_that_is_asked_for_more_rounds_goes_on_after_its_last(
    recipe: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(storage, load(str(recipe), ["rounds=3"])).finish()
    ran: list[int] = []
    monkeypatch.setattr(driver, "_run", lambda recipe, *rest: ran.append(recipe.config.rounds))

    longer = load(str(recipe), ["rounds=5"])
    driver.run(longer, storage.uri, "local")
    assert ran == [5]
    opened = ManifestStore(storage).open(longer.config.identity(), {}, go_on=True)
    assert (opened.phase, opened.round, opened.closed, opened.policy_version) == ("search", 4, 3, 3)
    assert (opened.shards, opened.ahead, opened.epoch) == ((), (), 2)


def test_a_policy_that_waits_for_its_evaluation_is_not_left_behind(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = LocalStorage(str(tmp_path / "run"))
    store = begun(storage, load(str(recipe)))
    store.commit([written_shard(storage, 0, round=4, policy_version=3)])
    store.advance(phase="evaluate", policy_version=4)
    ran: list[int] = []
    monkeypatch.setattr(driver, "_run", lambda recipe, *rest: ran.append(recipe.config.rounds))

    driver.run(load(str(recipe), ["rounds=2"]), storage.uri, "local")
    assert ran == [4]
    assert "round 4 has its policy already; the run ends at round 4" in capsys.readouterr().out


def test_a_finished_run_tells_the_rounds_that_it_has(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not what somebody wrote into config.yaml."""
    storage = LocalStorage(str(tmp_path / "run"))
    begun(storage, load(str(recipe), ["rounds=3"])).finish()
    storage.write("config.yaml", storage.read("config.yaml").replace(b"rounds: 3", b"rounds: 99"))

    driver.run(load(str(recipe), ["rounds=2"]), storage.uri, "local")
    assert "this run is finished (3 rounds); rounds = 2 discards none" in capsys.readouterr().out


# -- what may change --------------------------------------------------------------------------------------------------


def test_every_key_has_one_rule_and_each_rule_is_listed(recipe: Path) -> None:
    from dav_ray.config.identity import RULES, listed

    assert {rule(key) for key in fields()} <= set(RULES) and len(listed()) == len(RULES)
    free = {"rounds", "evaluate.samples", "evaluate.heldout", "retain.last", "roles.search.replicas", "track.kinds"}
    fixed = {"search.alpha", "mstep.learning_rate", "mstep.micro_batch", "evaluate.seed", "init.run", "seed"}
    fixed |= {"roles.train.replicas", "roles.search.threads", "model.path", "reward.args.python", "evaluate", "roles"}
    assert all(may_change(key) for key in free) and not any(may_change(key) for key in fixed)
    assert may_change("roles.search.labels.threads") and not may_change("reward[1].role.merge")
    assert "init.run" in reason("mstep.learning_rate") and "bits" in reason("mstep.micro_batch")

    plain = load(str(recipe)).config
    changes = ["rounds=9", "evaluate.samples=7", "evaluate.heldout=[{kind: target_colour, args: {colour: [1, 0, 0]}}]"]
    assert load(str(recipe), changes).config.identity() == plain.identity()
    assert load(str(recipe), ["evaluate.seed=7"]).config.identity() != plain.identity()


def test_a_measure_keeps_its_name(recipe: Path) -> None:
    def stored(heldout: str) -> str:
        return load(str(recipe), [f"evaluate.heldout={heldout}"]).yaml

    one, more = "[{kind: brightness, name: a}]", "[{kind: jpeg_compressibility}, {kind: brightness, name: a}]"
    assert differing_keys(stored(one), stored(more)) == differing_keys(stored(more), stored("[]")) == []
    (line,) = differing_keys(stored(more), stored("[{kind: jpeg_compressibility, name: a}]"))
    assert line.startswith('evaluate.heldout: a: was {"kind": "brightness"}, now {"kind": "jpeg_compressibility"}; ')


def test_run_directories_of_0_1_0_go_on(recipe: Path, tmp_path: Path) -> None:
    """Its manifests hold a checksum over rounds and evaluation too: it is known from config.yaml, and replaced."""
    storage, old = LocalStorage(str(tmp_path / "run")), load(str(recipe))
    assert old.config.former_identity() == "3db88fe776a61ce5b727db87d1333d5b4a0802a9216728c21bb8b849ea6d04b1"
    measured = "[{kind: brightness, tolerance: {A: 1}, role: {cpus: 2, threads: 3}}]"
    more = load(str(recipe), ["evaluate.samples=7", f"evaluate.heldout={measured}"]).config
    assert more.former_identity() == "f9dde72cba9fb960d68dffaa7a516f5779bbcf563ec66d4147f1ccfb5e91bf4c"
    begun(storage, old, closed=1)
    manifest = replace(manifest_of(storage), config_sha256=old.config.former_identity())
    storage.write(MANIFEST, manifest.to_json())
    longer, other = load(str(recipe), ["rounds=10"]), load(str(recipe), ["search.alpha=1"])

    for given in (longer, other):
        with pytest.raises(UserError, match="another configuration"):
            ManifestStore(storage).open(given.config.identity(), {})
    assert not earlier_identities(other, storage)
    store = ManifestStore(storage)
    store.open(longer.config.identity(), {}, former=earlier_identities(longer, storage))
    assert manifest_of(storage).config_sha256 == longer.config.identity() != old.config.former_identity()


# -- the report -------------------------------------------------------------------------------------------------------


def test_a_report_that_fails_ends_no_run(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged evaluation: the run is finished, a line and an event tell."""
    storage = LocalStorage(str(tmp_path / "run"))
    begun(storage, load(str(recipe)))
    storage.write("evaluate/round-0000.parquet", b"damaged")
    driver.run(load(str(recipe), ["rounds=3"]), storage.uri, "local")
    assert manifest_of(storage).phase == "done"
    assert "the report could not be written (RunError: " in capsys.readouterr().out
    assert "report_failed" in [event["event"] for event in events(tmp_path / "run")]


def test_a_last_report_tells_where_it_is(recipe: Path, storage: Storage) -> None:
    begun(storage, load(str(recipe)))
    where = write_last(storage.uri, RunLog(storage, 1), Progress(3))
    assert where == f"{storage.uri}/report.html" and b"<html" in open_storage(storage.uri).read("report.html")
