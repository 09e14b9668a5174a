"""A search worker hears that nobody wants its evaluation any more, in the middle of it."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from torch import Tensor, nn

from dav_ray.config.schema import Config
from dav_ray.diffusion.masked.alphabet import Alphabet
from dav_ray.diffusion.masked.dilated_cnn import DilatedCNN
from dav_ray.diffusion.masked.files import Settings, write
from dav_ray.evaluation.measure import evaluation_chunks
from dav_ray.run_dir.marker import write_marker
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.runtime.reward.fleet import FLEET
from dav_ray.runtime.search.dispatch import Dispatcher
from dav_ray.runtime.search.worker import SearchActor, WorkerSpec
from tests.runtime.search.test_dispatch import Round, team_of
from tests.support.clusters import local_ray
from tests.support.deadlines import stretched

STEPS, PAUSE_S = 100, 2.0


class Drowsy(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, *words: Any) -> Tensor:
        time.sleep(PAUSE_S)
        return self.network(*words)


class Slow(SearchActor):
    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        model: Any = self._diffusion
        model._policy = Drowsy(model._policy)


@pytest.mark.slow
def test_the_loser_of_a_doubled_evaluation_ends_within_a_step(tmp_path: Path) -> None:
    """It would take three minutes. The table is that of one worker alone, and nobody takes the other one for lost."""
    torch.manual_seed(0)
    write(tmp_path / "model", DilatedCNN(5, 8, 1, 5), Settings(Alphabet.of("dna"), 24, 0, False))
    config = Config.model_validate(
        {
            "model": {"kind": "masked", "path": str(tmp_path / "model")},
            "prompts": [""],
            "reward": {"kind": "gc_content", "where": "search"},
            "search": {"steps": STEPS, "alpha": 0.1},
            "mstep": {"lora": {"targets": ["convs"]}},
            "evaluate": {"samples": 12, "batch": 2, "kl_samples": 0, "elbo_draws": 0},
        }
    )
    run_dir = str(tmp_path / "run")
    write_marker(open_storage(run_dir))
    spec = WorkerSpec(config, run_dir, uuid.uuid4().hex, FLEET, 100.0, "no mailbox")
    chunks = evaluation_chunks(config, 1, 0, [""])
    with local_ray(num_cpus=2):
        workers = {
            name: ray.remote(kind).options(num_cpus=0, max_restarts=-1).remote(spec)
            for name, kind in {"fast": SearchActor, "slow": Slow}.items()
        }
        alone: list[Any] = [ray.get(workers["fast"].evaluate.remote(chunk)[0]) for chunk in chunks]
        team = team_of(workers, tmp_path / "run")
        found = Dispatcher(team, team.log).gather(chunks)
        began = time.monotonic()
        ray.get(workers["slow"].ready.remote(run_dir), timeout=stretched(30))
        assert time.monotonic() - began < stretched(5)

    assert found.column("sequence").to_pylist() == [s for t in alone for s in t.column("sequence").to_pylist()]
    told = [event for event in Round.read(tmp_path / "run") if event["event"] in ("stopped", "doubled", "worker_lost")]
    # once or twice each: the slow worker may have had an item behind the one in hand
    assert {(event["event"], event["worker"]) for event in told} == {("doubled", "fast"), ("stopped", "slow")}
