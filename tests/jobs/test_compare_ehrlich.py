"""The comparison with a genetic algorithm: its calls are counted, its best is reached, the table is that of the run."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from dav_ray.errors import UserError
from dav_ray.rewards.ehrlich import Ehrlich
from dav_ray.run_dir.manifest import round_manifest_path
from dav_ray.run_dir.storage.interface import Storage
from dav_ray.run_dir.storage.uri import open_storage
from jobs.compare import ehrlich as job

ARGS = {"length": 24, "motifs": 2, "motif_length": 4}


class Counting(Ehrlich):
    """Remembers what it was asked."""

    def __init__(self, **args: int) -> None:
        self.seen: list[Tensor] = []
        super().__init__(**args)
        self.seen.clear()

    def __call__(self, samples: Tensor, conditions: Any) -> Tensor:
        self.seen.append(samples)
        return super().__call__(samples, conditions)


@pytest.mark.parametrize(("calls", "sizes"), [(250, [100, 100, 50]), (200, [100, 100]), (30, [30])])
def test_genetic_spends_exactly_its_calls(calls: int, sizes: list[int]) -> None:
    function = Counting(**ARGS)
    found = job.genetic(function, calls, 100, 0, function.initial(100, 0))
    values = [Ehrlich.__call__(function, tokens, ()) for tokens in function.seen]
    alive = [v[v > -math.inf] for v in values]

    assert [len(tokens) for tokens in function.seen] == sizes
    assert [s.calls for s in found] == torch.tensor(sizes).cumsum(0).tolist()
    assert [s.best for s in found] == [torch.cat(values[: i + 1]).max().item() for i in range(len(values))]
    assert [s.median for s in found] == pytest.approx([v.quantile(0.5).item() for v in alive])
    assert torch.equal(function.seen[0], function.initial(100, 0)[:calls])


def test_genetic_finds_an_optimum_and_is_a_function_of_its_seed() -> None:
    function = Ehrlich(length=48, motifs=4, motif_length=6)
    start = function.initial(200, 0)
    found, again, other = (job.genetic(function, 20_000, 200, seed, start) for seed in (0, 0, 1))

    assert found == again != other
    assert found[0].best < 1.0 == found[-1].best
    assert found[-1].median > found[0].median


def test_genetic_needs_one_feasible_sequence() -> None:
    function = Ehrlich(**ARGS)
    a, b = (function.transitions == 0).nonzero()
    banned = torch.tensor([a[0], b[0]]).repeat(5, 12)
    with pytest.raises(ValueError, match="start: all its sequences are infeasible"):
        job.genetic(function, 100, 5, 0, banned)

    found = job.genetic(function, 300, 50, 0, torch.cat([banned, function.initial(1, 0)]))
    assert found[-1].calls == 300 and found[-1].best > -math.inf


def write_rewards(storage: Storage, path: str, rewards: list[float]) -> None:
    file = io.BytesIO()
    pq.write_table(pa.table({"round": [1] * len(rewards), "reward": rewards}), file)
    storage.write(path, file.getvalue())


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    """Two rounds; the first was searched in two chunks, and its metrics are logged twice, as after a restart."""
    storage = open_storage(str(tmp_path / "run"))
    reward = {"kind": "ehrlich", "args": ARGS}
    storage.write("config.yaml", json.dumps({"model": {"path": "x"}, "prompts": ["a"], "reward": reward}).encode())
    for round, role, calls in [(0, "evaluate", 0), (1, "search", 7), (1, "search", 100), (1, "evaluate", 0)] + [
        (2, "search", 150),
        (2, "evaluate", 0),
    ]:
        line = {"round": round, "role": role} | ({"search/reward_calls": float(calls)} if calls else {})
        storage.append_line("metrics.jsonl", json.dumps(line))
    write_rewards(storage, "evaluate/round-0000.parquet", [0.0, 0.25, 0.125])
    write_rewards(storage, "evaluate/round-0001.parquet", [-math.inf, 0.25, 0.5, -math.inf])
    write_rewards(storage, "evaluate/round-0002.parquet", [0.25, 0.75])
    write_rewards(storage, "buffer/round=0001/chunk-00000-aa.parquet", [0.5, -math.inf])
    write_rewards(storage, "buffer/round=0001/chunk-00001-bb.parquet", [0.875, 0.25])
    write_rewards(storage, "buffer/round=0001/chunk-00001-dd.parquet", [1.0])  # an orphan: no manifest names it
    write_rewards(storage, "buffer/round=0002/chunk-00000-cc.parquet", [0.75])
    for round, names in ((1, ("chunk-00000-aa", "chunk-00001-bb")), (2, ("chunk-00000-cc",))):
        shards = [{"path": f"buffer/round={round:04d}/{name}.parquet"} for name in names]
        storage.write(round_manifest_path(round), json.dumps({"shards": shards}).encode())
    return storage


def test_the_table_of_a_run(run: Storage) -> None:
    function = Ehrlich(**ARGS)
    rivals = [job.genetic(function, 250, 60, seed, function.initial(60, seed)) for seed in (0, 1)]
    best = [[next(s.best for s in history if s.calls == calls) for history in rivals] for calls in (60, 240)]
    table = job.compare(run.uri, [0, 1], 60)
    rows = [list(table.header), [], *map(list, table.rows)]

    assert rows[0] == ["round", "reward calls", "DAV best", "DAV median", "without search", "GA best", "GA median"]
    assert rows[2][:5] == ["0", "0", "", "", "0.125"]
    assert rows[3][:6] == ["1", "100", "0.875", "0.375", "-inf", f"{sum(best[0]) / 2:.3f}"]
    # the last generation was cut to the ten calls that were left
    assert rows[4][:5] == ["2", "250", "0.875", "0.750", "0.500"]
    assert float(rows[4][5]) >= sum(best[1]) / 2 - 5e-4
    assert len(rows) == 5


def test_a_run_of_another_reward_is_refused(run: Storage, tmp_path: Path) -> None:
    text = run.read("config.yaml").decode()
    run.write("config.yaml", text.replace("ehrlich", "brightness").replace(json.dumps(ARGS), "{}").encode())
    with pytest.raises(UserError, match="reward = brightness; allowed: ehrlich alone, weight 1"):
        job.compare(run.uri, [0], 60)
    with pytest.raises(UserError, match="config.yaml: does not exist; allowed: the directory of a run"):
        job.compare(str(tmp_path / "nothing"), [0], 60)
