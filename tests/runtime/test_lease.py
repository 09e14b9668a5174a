"""One driver per run directory: who gets the lease, who is refused, who is too late."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from dav_ray.errors import RunError, StaleEpoch, UserError
from dav_ray.run_dir.manifest import ManifestStore
from dav_ray.run_dir.storage.interface import Conflict, Storage, Version
from dav_ray.run_dir.storage.local import LocalStorage
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.runtime import interrupt, lease
from dav_ray.runtime.lease import LEASE, LEASE_S, Holder, Keeper, Lease, LeaseTaken, held, take
from tests.support.deadlines import hung, limit, stretched, until
from tests.support.runs import files, finish, masked_recipe, start, wait_for

ELSEWHERE = Holder("gpu-7", "another boot", 4711, 1, "theirs")


class Clock:
    """Seconds that pass only while someone sleeps. meanwhile(now): what others do then."""

    def __init__(self, meanwhile: object = None) -> None:
        self.now, self._meanwhile = 0.0, meanwhile

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if callable(self._meanwhile):
            self._meanwhile(self.now)


def stored(storage: Storage) -> Lease:
    return Lease.from_json(storage.read(LEASE))


def dead() -> Holder:
    """A process of this machine that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return replace(Holder.here(), pid=child.pid, id="theirs")


# -- who gets it ------------------------------------------------------------------------------------------------------


def test_a_fresh_directory_is_taken_at_once(storage: Storage) -> None:
    here, clock, said = Holder.here(), Clock(), []
    assert take(storage, here, said.append, clock, clock.sleep)[0] == Lease(here, 0) == stored(storage)
    assert (clock.now, said) == (0.0, [])
    assert (here.pid, here.started) == (os.getpid(), lease._start(os.getpid()))


@pytest.mark.parametrize("before", [Lease(None, 9), Lease(dead(), 9)])
def test_what_is_free_or_a_dead_neighbours_is_taken_at_once(storage: Storage, before: Lease) -> None:
    storage.create(LEASE, before.to_json())
    here, clock, said = Holder.here(), Clock(), []
    take(storage, here, said.append, clock, clock.sleep)
    assert stored(storage).holder == here
    assert (clock.now, said) == (0.0, [])


def test_a_pid_that_came_again_is_no_holder(storage: Storage) -> None:
    storage.create(LEASE, Lease(replace(Holder.here(), started=1, id="theirs")).to_json())
    take(storage, here := Holder.here(), print)
    assert stored(storage).holder == here


def test_a_live_neighbour_refuses_at_once(storage: Storage) -> None:
    theirs = Holder.here()
    storage.create(LEASE, Lease(theirs).to_json())
    clock = Clock()
    with pytest.raises(UserError) as caught:
        take(storage, Holder.here(), print, clock, clock.sleep)
    assert clock.now == 0 and len(caught.value.lines) == 1
    assert f"{theirs.host}, pid {os.getpid()}" in str(caught.value) and storage.uri in str(caught.value)
    assert "the run goes on there" in str(caught.value)
    assert stored(storage) == Lease(theirs)


@pytest.mark.parametrize("machine", ["another boot", ""])
def test_a_silent_holder_elsewhere_is_waited_for_once(storage: Storage, machine: str) -> None:
    storage.create(LEASE, Lease(replace(ELSEWHERE, machine=machine), 3).to_json())
    here, clock, said = replace(Holder.here(), machine=machine if not machine else "mine"), Clock(), []
    take(storage, here, said.append, clock, clock.sleep)
    assert clock.now == LEASE_S and stored(storage).holder == here
    assert len(said) == 1 and "gpu-7, pid 4711" in said[0] and "15 s" in said[0]


def test_a_holder_elsewhere_who_renews_refuses(storage: Storage) -> None:
    storage.create(LEASE, Lease(ELSEWHERE, 3).to_json())

    def renew(now: float) -> None:
        if now == 5.0:
            storage.replace(LEASE, Lease(ELSEWHERE, 4).to_json(), storage.read_versioned(LEASE)[1])

    clock = Clock(renew)
    with pytest.raises(UserError, match="gpu-7, pid 4711"):
        take(storage, Holder.here(), lambda _: None, clock, clock.sleep)
    assert clock.now == 5.0 and stored(storage) == Lease(ELSEWHERE, 4)


def test_a_holder_elsewhere_who_ends_makes_room(storage: Storage) -> None:
    storage.create(LEASE, Lease(ELSEWHERE, 3).to_json())

    def release(now: float) -> None:
        if now == 2.0:
            storage.replace(LEASE, Lease(None, 4).to_json(), storage.read_versioned(LEASE)[1])

    clock, here = Clock(release), Holder.here()
    take(storage, here, lambda _: None, clock, clock.sleep)
    assert clock.now == 2.0 and stored(storage).holder == here


@pytest.mark.parametrize(
    "damage",
    [b"", b"{}", b"[" * 5000, b'{"holder": 3, "counter": 1}', b'{"holder": {"pid": 1}, "counter": 1}', b"\xff\x00"],
)
def test_a_damaged_lease_is_waited_for_and_mended(tmp_path: Path, damage: bytes) -> None:
    storage = LocalStorage(str(tmp_path))
    storage.write(LEASE, damage)
    here, clock = Holder.here(), Clock()
    take(storage, here, lambda _: None, clock, clock.sleep)
    assert clock.now == LEASE_S and stored(storage) == Lease(here)


def test_of_racing_drivers_one_goes_on(storage: Storage) -> None:
    barrier = threading.Barrier(12)

    def race(_: int) -> bool:
        barrier.wait(timeout=hung(20))
        try:
            take(storage, Holder.here(), print)
        except UserError:
            return False
        return True

    with ThreadPoolExecutor(12) as pool:
        assert sum(pool.map(race, range(12))) == 1


# -- while it is held -------------------------------------------------------------------------------------------------


class Flaky(LocalStorage):
    """A store that is away for its first `away` conditional writes, or that loses their answers."""

    away = 0
    lost = 0

    def replace(self, path: str, data: bytes, version: Version) -> Version:
        if Flaky.away:
            Flaky.away -= 1
            raise RunError("storage", "away")
        done = super().replace(path, data, version)
        if Flaky.lost:
            Flaky.lost -= 1
            raise Conflict(path)
        return done


def test_it_is_renewed_and_freed(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE_S", 0.3)
    with held(storage, print):
        until(lambda: stored(storage).counter >= 3, "it is not renewed", 20, pause_s=0.01)
        assert stored(storage).holder is not None
    freed = stored(storage)
    assert freed.holder is None and freed.counter > 3
    time.sleep(0.3)
    assert stored(storage) == freed


@pytest.mark.parametrize("error", [RunError("search", "no"), SystemExit(143), KeyboardInterrupt()])
def test_it_is_freed_whatever_ends_the_run(tmp_path: Path, error: BaseException) -> None:
    storage = LocalStorage(str(tmp_path))
    with pytest.raises(type(error)), held(storage, print):
        raise error
    assert stored(storage).holder is None


def test_a_store_that_is_away_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE_S", 0.15)
    monkeypatch.setattr(Flaky, "away", 4)
    with held(Flaky(str(tmp_path)), print):
        until(
            lambda: Flaky.away == 0 and stored(LocalStorage(str(tmp_path))).counter > 1,
            *("it is not renewed", 20),
            pause_s=0.01,
        )
        interrupt.check()


def test_a_renewal_whose_answer_was_lost_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Flaky, "lost", 1)
    storage = Flaky(str(tmp_path))
    keeper = Keeper(storage, *take(storage, Holder.here(), print))
    keeper.renew()
    assert Flaky.lost == 0 and stored(storage).counter == 1
    storage.delete(LEASE)  # by hand
    keeper.renew()
    assert stored(storage).counter == 2


def test_who_finds_it_taken_ends_and_leaves_it_alone(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE_S", 0.15)
    with (
        pytest.raises(LeaseTaken, match="driver: another driver .gpu-7, pid 4711. has taken over"),
        held(storage, print),
    ):
        while True:
            try:
                storage.replace(LEASE, Lease(ELSEWHERE).to_json(), storage.read_versioned(LEASE)[1])
                break
            except Conflict:
                continue
        in_time = limit(20, "nobody ends it")
        while True:
            interrupt.check()
            in_time()
            time.sleep(0.01)
    assert stored(storage) == Lease(ELSEWHERE)
    interrupt.check()  # nothing is left for the next run of this process


# -- real processes ---------------------------------------------------------------------------------------------------

DRIVER = """
import sys, time
from dav_ray.runtime import interrupt
from dav_ray.runtime import lease
from dav_ray.run_dir.manifest import ManifestStore
from dav_ray.run_dir.storage.uri import open_storage

lease.LEASE_S = float(sys.argv[2])
storage = open_storage(sys.argv[1])
with interrupt.interruptible(), lease.held(storage, print):
    store = ManifestStore(storage)
    store.open("c0ffee", {})
    print("up", flush=True)
    phases = ["fit", "search"]
    while True:
        interrupt.check()
        store.advance(phase=phases[0])
        phases.reverse()
        time.sleep(0.02)
"""


def driver(folder: Path, lease_s: float = LEASE_S) -> subprocess.Popen[str]:
    """A process that holds the lease and writes the manifest again and again."""
    command = [sys.executable, "-c", textwrap.dedent(DRIVER), str(folder), str(lease_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = process.stdout.readline()
    assert said == "up\n", said + process.stdout.read()
    return process


RUN = """
import sys
from dav_ray.cli.app import app

try:
    app(["run", "digits", "--run-dir", sys.argv[1]])
finally:
    print("heavy:", *sorted({"ray", "torch", "diffusers"} & set(sys.modules)))
"""


def test_a_second_command_is_refused_before_anything_happens(tmp_path: Path) -> None:
    first = driver(tmp_path / "run")
    try:
        first.send_signal(signal.SIGSTOP)
        before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
        done = subprocess.run([sys.executable, "-c", RUN, str(tmp_path / "run")], capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1 and f"pid {first.pid})" in done.stderr and "goes on there" in done.stderr
        assert done.stdout.splitlines()[-1] == "heavy:"
        assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    finally:
        first.kill()
        first.wait()


def test_a_killed_driver_leaves_its_lease_to_the_next(tmp_path: Path) -> None:
    first = driver(tmp_path)
    first.kill()
    start_s = time.monotonic()
    second = driver(tmp_path)
    assert time.monotonic() - start_s < stretched(LEASE_S / 2)
    assert ManifestStore(LocalStorage(str(tmp_path))).load().epoch == 2  # type: ignore[union-attr]
    first.wait()
    second.send_signal(signal.SIGTERM)
    assert second.wait(hung(20)) == 143
    assert stored(LocalStorage(str(tmp_path))).holder is None


def test_a_stopped_driver_that_wakes_after_another_took_over_harms_nothing(tmp_path: Path) -> None:
    storage, said = LocalStorage(str(tmp_path)), []
    sleeper = driver(tmp_path, lease_s=1.5)
    stop_outside_locks(sleeper, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease, "LEASE_S", 1.5)
        with held(storage, said.append, Holder.here(machine="another")):
            assert len(said) == 1 and f"pid {sleeper.pid}" in said[0]
            store = ManifestStore(storage)
            store.open("c0ffee", {})
            mine = store.advance(phase="evaluate")
            sleeper.send_signal(signal.SIGCONT)
            output, _ = sleeper.communicate(timeout=hung(20))
            assert sleeper.returncode == 1
            assert "has taken over this run" in output.splitlines()[-1]
            assert store.load() == mine and mine.epoch == 2
            holder = stored(storage).holder
            assert holder is not None and holder.machine == "another"
            interrupt.check()


def test_a_driver_that_waits_for_a_lease_can_be_stopped(tmp_path: Path) -> None:
    open_storage(str(tmp_path / "run")).create(LEASE, Lease(ELSEWHERE).to_json())
    waiting = start(tmp_path, "digits", "--run-dir", "run")
    assert waiting.stdout is not None
    while "waiting" not in (line := waiting.stdout.readline()):
        assert line, "it did not wait"
    told = time.monotonic()
    waiting.send_signal(signal.SIGTERM)
    assert waiting.wait(hung(20)) == 143 and time.monotonic() - told < stretched(3)
    assert os.listdir(tmp_path / "run") == [LEASE]
    assert stored(open_storage(str(tmp_path / "run"))) == Lease(ELSEWHERE)


ANOTHER_MACHINE = """
import sys
from dav_ray.runtime import lease

lease._machine = lambda: "another"
sys.argv[0] = "dav-ray"
from dav_ray.cli.app import main
main()
"""


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_run_that_another_machine_took_over_has_the_bits_of_an_undisturbed_one(tmp_path: Path) -> None:
    words = [str(masked_recipe(tmp_path)), "--run-dir"]
    finish(start(tmp_path, *words, "whole"), 0, 600)
    first = start(tmp_path, *words, "run")
    wait_for(tmp_path / "run", "chunk_committed", 2, first)
    stop_outside_locks(first, tmp_path / "run")
    command = [sys.executable, "-c", ANOTHER_MACHINE, "run", *words, "run"]
    second = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(tmp_path / "run", "driver_started", 2, second)
    first.send_signal(signal.SIGCONT)
    assert "has taken over this run" in finish(first, 1, 600)
    assert "waiting 15 s" in finish(second, 0, 600)
    for pattern in ("policy/*/*", "buffer/*/*.parquet"):
        assert files(tmp_path / "run", pattern) == files(tmp_path / "whole", pattern) != {}
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert (manifest["epoch"], manifest["phase"]) == (2, "done")


def stop_outside_locks(process: subprocess.Popen[str], folder: Path) -> None:
    """A process that is stopped while it holds a lock file stops whoever wants that too."""
    while True:
        process.send_signal(signal.SIGSTOP)
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.001)
        if not any(_is_locked(folder / f".{name}.lock") for name in (LEASE, "manifest.json", "events.jsonl")):
            return
        process.send_signal(signal.SIGCONT)
        time.sleep(0.01)


def _is_locked(path: Path) -> bool:
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_the_error_survives_pickle() -> None:
    import pickle

    error = LeaseTaken("driver", "another driver (a, pid 1) has taken over this run")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is LeaseTaken and str(copy) == str(error) and not isinstance(copy, StaleEpoch)
