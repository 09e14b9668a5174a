"""A worker stores what it found in one chunk while it computes the next one: real actors, of which some sleep."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

from dav_ray.errors import RunError, Stopped
from dav_ray.run_dir.storage.local import LocalStorage
from dav_ray.run_dir.storage.local_files import FileFault
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.runtime.accepted import SearchedChunk
from dav_ray.runtime.cluster.failures import unwrap
from dav_ray.runtime.search.calls import AT_ONCE
from dav_ray.runtime.search.dispatch import Dispatcher, Done
from dav_ray.runtime.search.process import Process
from dav_ray.runtime.search.worker import SearchActor
from dav_ray.types import Chunk, Trajectories
from tests.runtime.search.test_dispatch import Round, once, team_of
from tests.support.bench import Bench, bench_in
from tests.support.deadlines import stretched
from tests.support.sleepers import STORE_S, Storing

COMPUTE_S = 0.3


def storing(name: str, pace: float = COMPUTE_S, born: float = 0.0, at_once: int = AT_ONCE) -> Any:
    return ray.remote(Storing).options(num_cpus=0, max_restarts=-1, max_concurrency=at_once).remote(name, pace, born)


@pytest.fixture(scope="module")
def bench(shared_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench_in(tmp_path_factory.mktemp("storing")) as found:
        yield found


@pytest.mark.thorough
def test_a_worker_that_dies_with_two_items_is_lost_once_and_both_are_done(bench: Bench, tmp_path: Path) -> None:
    """One of the two may be what ended it: each is done again for itself."""
    done = Round(tmp_path, {"a": storing("a")})

    def kill() -> None:
        os.kill(done.processes["a"].pid, signal.SIGKILL)

    done.run(12, tick=once(lambda: len(done.results) >= 2, kill))
    (lost,) = done.events("worker_lost")
    first, second, third, fourth = map(str, range(int(lost["item"]), int(lost["item"]) + 4))
    assert int(first) >= 2 and [event["item"] for event in done.events("requeued")] == [first, second]
    spans = {item.name: meta[1:] for item, _, meta in done.results}
    assert all(spans[b][0] > spans[a][1] + STORE_S for a, b in ((first, second), (second, third)))
    assert spans[fourth][0] < spans[third][1] + STORE_S


def test_a_worker_that_comes_takes_what_another_has_not_started(bench: Bench, tmp_path: Path) -> None:
    """Nothing waits by then. In the end it also does what the other one, which takes a minute, is at."""
    slow = storing("slow", 60.0)
    ray.get(slow.ready.remote(""))
    done = Round(tmp_path, {"slow": slow, "new": storing("new", 0.1, born=0.5)}, away=("new",))
    began = time.monotonic()
    assert done.run(2).who() == {"new": 2}
    assert time.monotonic() - began < stretched(30)
    assert [(event["worker"], event["item"]) for event in done.events("doubled")] == [("new", "1"), ("new", "0")]
    assert [(event["worker"], event["item"]) for event in done.events("stopped")] == [("slow", "1"), ("slow", "0")]
    ray.kill(slow)  # what it sleeps for is done


@dataclass(frozen=True)
class SlowStorage(LocalStorage):
    """Takes STORE_S for a write; full when it is to write what has this in its name."""

    full: str

    def write(self, path: str, data: bytes) -> None:
        time.sleep(STORE_S)
        if self.full in path:
            raise FileFault("storage", f"{path}: No space left on device")
        super().write(path, data)


class Slow(SearchActor):
    """Takes some seconds more for a search, and stores in a slow place. It says when it computed."""

    def become(self, seconds: float, full: str = "nothing") -> list[tuple[float, float]]:
        """What it takes from now on, and how long each search took before."""
        self._storage, self.seconds = SlowStorage(self._spec.run_dir, full), seconds
        self.spans: list[tuple[float, float]] = []
        return self.spans

    def computed(self) -> list[tuple[float, float]]:
        return self.spans

    def ready(self, run_dir: str) -> Process:
        return super().ready(self._spec.run_dir)

    def _find(self, chunk: Chunk) -> Trajectories:
        start = time.monotonic()
        time.sleep(self.seconds)
        found = super()._find(chunk)
        self.spans.append((start, time.monotonic()))
        return found


@pytest.fixture(scope="module")
def slow(bench: Bench) -> Iterator[Any]:
    """A worker that has searched before."""
    actor = bench.worker(Slow)
    ray.get(actor.become.remote(0.0))
    ray.get(actor.search.remote(bench.chunk(100))[1])
    yield actor
    ray.kill(actor)


def gaps(spans: Sequence[tuple[float, float]]) -> list[float]:
    """Seconds between one search and the next."""
    return [after[0] - before[1] for before, after in itertools.pairwise(spans)]


def test_a_chunk_is_stored_while_the_next_one_is_computed(bench: Bench, slow: Any, tmp_path: Path) -> None:
    """The shards are those of one after the other, in less time; only computing is counted as work; what the driver may
    commit is stored."""
    chunks = [bench.chunk(index) for index in range(6)]
    ray.get(slow.become.remote(COMPUTE_S))
    began = time.monotonic()
    serial = [ray.get(slow.search.remote(chunk)[1]).result for chunk in chunks]
    serial_s, serial_gaps = time.monotonic() - began, gaps(ray.get(slow.computed.remote()))

    ray.get(slow.become.remote(COMPUTE_S))
    team, found = team_of({"slow": slow}, tmp_path), dict[int, SearchedChunk]()
    dispatcher, storage = Dispatcher(team, team.log), open_storage(bench.spec.run_dir)

    def keep(done: Sequence[Done]) -> None:
        for chunk, table, result in done:
            assert hashlib.sha256(storage.read(result.shard.path)).hexdigest() == result.shard.sha256
            assert ray.get(table).num_rows == 4
            found[chunk.index] = result

    for one in serial:
        storage.delete(one.shard.path)
    began = time.monotonic()
    dispatcher.run("search", chunks, keep)
    seconds, spans = time.monotonic() - began, ray.get(slow.computed.remote())
    print(f"6 chunks: {serial_s:.2f} s one after another, {seconds:.2f} s side by side")

    assert [found[chunk.index].shard for chunk in chunks] == [one.shard for one in serial]
    assert min(serial_gaps) > STORE_S and min(gaps(spans)) >= 0  # one computes at a time
    assert sum(gaps(spans)) < sum(serial_gaps) / 2
    assert seconds < serial_s - 2 * STORE_S
    computed, spent = sum(end - start for start, end in spans), [one.spent for one in found.values()]
    assert computed <= sum(one.seconds for one in spent) < computed + stretched(0.3)
    assert dispatcher.busy_s == pytest.approx(sum(one.seconds - one.waited_s for one in spent))


def test_a_chunk_that_waits_for_the_model_hears_that_nobody_wants_it(bench: Bench, slow: Any) -> None:
    """And the one that is computed is not disturbed."""
    ray.get(slow.become.remote(stretched(3.0)))
    _, first = slow.search.remote(bench.chunk(0))
    time.sleep(0.5)
    _, second = slow.search.remote(bench.chunk(1))
    time.sleep(0.5)
    ray.cancel(second, recursive=False)
    with pytest.raises(ray.exceptions.RayError) as heard:
        ray.get(second, timeout=stretched(10))
    assert isinstance(unwrap(heard.value), Stopped | ray.exceptions.TaskCancelledError)
    assert not ray.wait([first], timeout=0)[0]
    assert ray.get(first).result.shard.chunk == 0 and len(ray.get(slow.computed.remote())) == 1


def test_what_can_not_be_stored_ends_the_run_by_its_own_name(bench: Bench, slow: Any, tmp_path: Path) -> None:
    """The chunk before it counts."""
    ray.get(slow.become.remote(COMPUTE_S, "chunk-00001"))
    team = team_of({"slow": slow}, tmp_path)
    dispatcher, kept = Dispatcher(team, team.log), list[int]()
    with pytest.raises(RunError, match=r"storage: .*/chunk-00001-\w+\.parquet: No space left on device"):
        keep = lambda done: kept.extend(chunk.index for chunk, _, _ in done)  # noqa: E731
        dispatcher.run("search", [bench.chunk(index) for index in range(4)], keep)
    assert kept == [0]
