"""Search workers that run out of memory take less at once; what they find is what they would have found."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from torch import Tensor, nn

from dav_ray.diffusion.base import NoRoom, Room
from dav_ray.errors import RunError
from dav_ray.runtime.search.dispatch import Dispatcher
from dav_ray.runtime.search.process import Process, Reply
from dav_ray.runtime.search.worker import SearchActor, WorkerSpec
from tests.runtime.search.test_dispatch import Round, team_of
from tests.support.bench import Bench, bench_in
from tests.support.clusters import local_ray
from tests.support.runs import events, finish, masked_recipe
from tests.support.sleepers import Item, Sleeper


def test_a_room_halves_what_went_through_it() -> None:
    room = Room(128)
    assert [len(range(*rows.indices(7))) for rows in room.calls(7)] == [7]
    assert room.halve() and (room.limit, room.most) == (3, 3)
    assert [rows.stop - rows.start for rows in room.calls(7)] == [2, 3, 2]
    assert room.halve() and room.limit == 1
    assert not room.halve() and room.limit == 1


def rows(room: Room, total: int, fits: int) -> tuple[list[slice], list[slice]]:
    """Pieces that were tried, and those that went through, where memory suffices for so many states."""
    tried: list[slice] = []

    def call(piece: slice) -> slice:
        tried.append(piece)
        if piece.stop - piece.start > fits:
            raise torch.OutOfMemoryError(f"Tried to allocate room for {piece.stop - piece.start} rows")
        return piece

    return tried, list(room.each(total, call))


def test_a_call_that_runs_out_of_memory_is_made_again_in_halves_and_no_other() -> None:
    told: list[tuple[str, int, str]] = []
    room = Room(8, name="decoder", told=lambda room, cause: told.append((room.name, room.limit, cause)))
    tried, done = rows(room, 16, 3)
    assert tried[0] == slice(0, 8) and tried[1] == slice(0, 4)  # 8 were too many, so were 4
    assert done == [slice(a, a + 2) for a in range(0, 16, 2)]
    assert told == [
        ("decoder", limit, f"OutOfMemoryError: Tried to allocate room for {2 * limit} rows") for limit in (4, 2)
    ]
    tried, done = rows(room, 5, 3)
    assert tried == done and len(told) == 2  # it stays with what went well


def test_what_went_through_is_not_computed_again() -> None:
    """Memory runs out in the third of four calls, and for a moment only."""
    room, tried = Room(4, told=lambda *_: None), []

    def call(piece: slice) -> slice:
        tried.append(piece)
        if len(tried) == 3:
            raise MemoryError
        return piece

    done = list(room.each(16, call))
    assert done == [slice(0, 4), slice(4, 8), *(slice(a, a + 2) for a in range(8, 16, 2))]
    assert tried == [*done[:2], slice(8, 12), *done[2:]]


def test_memory_that_runs_out_for_one_state_or_with_nobody_to_be_told() -> None:
    with pytest.raises(NoRoom, match="OutOfMemoryError: Tried to allocate room for 1 rows"):
        rows(Room(8, told=lambda *_: None), 4, 0)
    untold = Room(8)
    with pytest.raises(torch.OutOfMemoryError, match="room for 8 rows"):
        rows(untold, 16, 3)
    assert untold.limit == 8


class Greedy(Sleeper):
    """Takes memory until Ray's monitor ends it, unless it is told to take less."""

    def __init__(self, name: str, gigabytes: float) -> None:
        super().__init__(name, 0.2)
        self.gigabytes = gigabytes

    @ray.method(num_returns=2)
    def search(self, item: Item, halvings: int) -> tuple[str, Reply]:
        held = [bytearray(os.urandom(1) * 10**8) for _ in range(int(10 * self.gigabytes / 2**halvings))]
        time.sleep(3)
        return item.name, Reply((self.name, float(len(held)), 0.0), self.process, halvings)


@pytest.mark.slow
def test_a_worker_that_ray_ends_for_want_of_memory_is_given_less(tmp_path: Path) -> None:
    """By Ray's own monitor, in a cluster to which 2.5 GB are left."""
    total, free = (float(line.split()[1]) / 1e6 for line in _meminfo("MemTotal", "MemAvailable"))
    if free < 8:
        pytest.skip(f"{free:.1f} GB of memory are free; 8 are needed")
    system = {"memory_usage_threshold": (total - free + 2.5) / total, "memory_monitor_refresh_ms": 100}
    with local_ray(num_cpus=2, _system_config=system):
        worker = ray.remote(Greedy).options(num_cpus=0, max_restarts=-1).remote("a", 5.0)
        done = Round(tmp_path, {"a": worker}).run(2)
    lost = done.events("worker_lost")
    assert lost
    assert [event["halvings"] for event in done.events("out_of_memory")] == list(range(1, len(lost) + 1))
    assert [meta[1] for _, _, meta in done.results] == [50 // 2 ** len(lost)] * 2  # it stays with what went well


def _meminfo(*names: str) -> list[str]:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return [next(line for line in lines if line.startswith(name)) for name in names]


class Narrow(nn.Module):
    """A network for which memory suffices up to so many rows."""

    def __init__(self, network: Any, rows: int) -> None:
        super().__init__()
        self.network, self.rows = network, rows

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        if len(x) > self.rows:
            raise torch.OutOfMemoryError(f"Tried to allocate room for {len(x)} rows")
        return self.network(x, *rest)


class Tight(SearchActor):
    def __init__(self, spec: WorkerSpec, rows: int) -> None:
        super().__init__(spec)
        model: Any = self._diffusion
        model._policy = Narrow(model._policy, rows)

    def ready(self, run_dir: str) -> Process:
        return self._process


def tight(bench: Bench, rows: int) -> Any:
    return bench.worker(Tight, rows)


@pytest.fixture(scope="module")
def bench(shared_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench_in(tmp_path_factory.mktemp("memory")) as found:
        yield found


def same(one: pa.Table, other: pa.Table) -> None:
    """Up to the last digits of other batch sizes."""
    assert one.column_names == other.column_names and one.num_rows == other.num_rows == 4
    for name in one.column_names:
        a, b = one.column(name).to_pylist(), other.column(name).to_pylist()
        if isinstance(a[0], float):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=name)
        else:
            assert a == b, name


@pytest.mark.slow
def test_a_search_that_runs_out_of_memory_goes_on_in_pieces(bench: Bench, tmp_path: Path) -> None:
    """Its worker lives, its tables are those of one that has the room, and it stays with the smaller pieces."""
    roomy, narrow = tight(bench, 100), tight(bench, 1)
    whole = [ray.get(roomy.search.remote(bench.chunk(index))[0]) for index in (0, 1)]
    found: dict[int, Any] = {}
    team = team_of({"tight": narrow}, tmp_path)
    dispatcher = Dispatcher(team, team.log)
    keep = lambda done: found.update({chunk.index: ray.get(table) for chunk, table, _ in done})  # noqa: E731
    dispatcher.run("search", [bench.chunk(0), bench.chunk(1)], keep)
    for index in (0, 1):
        same(found[index], whole[index])
    told = [event for event in Round.read(tmp_path) if event["event"] == "out_of_memory"]
    assert {(event["worker"], event["item"]) for event in told} == {("tight", "0 of round 1")}
    assert [(event["of"], event["micro_batch"]) for event in told] == [
        *(("gradient", limit) for limit in (2, 1)),  # four parents were too many
        *(("network", limit) for limit in (6, 3, 1)),  # and so were their twelve candidates
    ]
    assert told[0]["cause"] == "OutOfMemoryError: Tried to allocate room for 4 rows"
    assert told[0]["took"].endswith("GB of the host")
    answers = ray.get([worker.search.remote(bench.chunk())[1] for worker in (roomy, narrow)])
    assert [answer.halvings for answer in answers] == [0, 0] and answers[1].events == ()


@pytest.mark.slow
def test_a_new_life_begins_with_the_pieces_that_it_is_told(bench: Bench) -> None:
    """Twelve candidates at once: three after two halvings, whatever search.micro_batch is."""
    table, answer = tight(bench, 3).search.remote(bench.chunk(), 2)
    told: Reply = ray.get(answer)
    assert (told.halvings, told.events) == (2, ())
    same(ray.get(table), ray.get(tight(bench, 100).search.remote(bench.chunk())[0]))


@pytest.mark.slow
def test_one_state_that_does_not_fit_ends_the_run(bench: Bench) -> None:
    words = (
        r"search: chunk 0 of round 1 on tight-\w+: one state at a time does not fit in memory, with [\d.]+ GB of the "
        r"host taken \(OutOfMemoryError: Tried to allocate room for 1 rows\)"
    )
    with pytest.raises(RunError, match=words):
        ray.get(tight(bench, 0).search.remote(bench.chunk())[1])
    with pytest.raises(RunError, match=r"one state at a time .* \(it ended workers\)"):
        ray.get(tight(bench, 100).search.remote(bench.chunk(), 9)[1])


NARROW = """
from typing import Any

from dav_ray.cli import app
from dav_ray.runtime.train import rank

loop = rank.train_loop


def narrow(settings: dict[str, Any]) -> None:
    import torch
    from dav_ray.mstep import fit

    whole = fit.accumulate

    def accumulate(*words: Any, micro_batch: int, **rest: Any) -> Any:
        if micro_batch > ROWS:
            raise torch.OutOfMemoryError(f"Tried to allocate room for {micro_batch} rows")
        return whole(*words, micro_batch=micro_batch, **rest)

    fit.accumulate = accumulate
    loop(settings)


rank.train_loop = narrow
app.main()
"""


def train_in(folder: Path, rows: int, batch_size: int, code: int) -> tuple[str, list[dict[str, Any]]]:
    """A round of two ranks with room for so many transitions: output, and the events of lost memory."""
    masked_recipe(
        folder,
        rounds=1,
        mstep={"learning_rate": 0.01, "batch_size": batch_size, "lora": {"targets": ["convs"]}},
        roles={"search": {"cpus": 0.2}, "reward": {"cpus": 0.1}, "train": {"replicas": 2, "cpus": 0.2}},
    )
    (folder / "narrow.py").write_text(NARROW.replace("ROWS", str(rows)))
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    words = [sys.executable, "narrow.py", "run", "tiny.yaml", "--run-dir", f"run-{rows}"]
    process = subprocess.Popen(words, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output = finish(process, code)
    return output, [event for event in events(folder / f"run-{rows}") if event["event"] == "out_of_memory"]


@pytest.mark.slow
def test_ranks_that_run_out_of_memory_halve_their_micro_batch(tmp_path: Path) -> None:
    """Thirty-two transitions a step and rank, room for two: more restarts than a round has for other troubles."""
    _, told = train_in(tmp_path, 2, 64, 0)
    assert [event["micro_batch"] for event in told] == [16, 8, 4, 2] and {event["role"] for event in told} == {"train"}
    assert told[0]["cause"] == "OutOfMemoryError: Tried to allocate room for 32 rows"


@pytest.mark.slow
def test_one_transition_that_does_not_fit_ends_the_run(tmp_path: Path) -> None:
    output, told = train_in(tmp_path, 0, 4, 1)
    assert [event["micro_batch"] for event in told] == [1]
    assert "train: out of memory, " in output and "taken, with mstep.micro_batch = 1: OutOfMemoryError" in output
