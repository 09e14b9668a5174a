"""Real search workers of a tiny masked model, without a run around them."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from dav_ray.config.schema import Config
from dav_ray.run_dir.marker import write_marker
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.runtime.reward.fleet import FLEET, FleetStart, reward_specs, start_fleet
from dav_ray.runtime.search.calls import AT_ONCE
from dav_ray.runtime.search.worker import WorkerSpec
from dav_ray.types import Chunk


@dataclass(frozen=True)
class Bench:
    """A fleet of rewards, and what search workers are built from."""

    spec: WorkerSpec

    def worker(self, kind: type, *args: Any) -> Any:
        """An actor of this class, a `SearchActor`."""
        options: dict[str, Any] = {"name": f"tight-{uuid.uuid4().hex}", "num_cpus": 0, "max_concurrency": AT_ONCE}
        return ray.remote(kind).options(**options).remote(self.spec, *args)

    def chunk(self, index: int = 0) -> Chunk:
        return Chunk(7, 1, index, 0, tuple(range(4 * index, 4 * index + 4)), ("", "fixed=3:TATA") * 2)


@contextlib.contextmanager
def bench_in(folder: Path) -> Iterator[Bench]:
    """In the Ray that is there, the model and the run directory in this folder."""
    from dav_ray.diffusion.masked.alphabet import Alphabet
    from dav_ray.diffusion.masked.dilated_cnn import DilatedCNN
    from dav_ray.diffusion.masked.files import Settings, write

    torch.manual_seed(0)
    write(folder / "model", DilatedCNN(5, 8, 1, 5), Settings(Alphabet.of("dna"), 24, 0, False))
    search = {"candidates": 3, "alpha": 0.02, "gradient": True, "steps": 5, "trajectories": 8, "chunk": 4}
    config = Config.model_validate(
        {
            "model": {"kind": "masked", "path": str(folder / "model")},
            "prompts": [""],
            "reward": {"kind": "gc_content"},
            "search": search,
            "mstep": {"lora": {"targets": ["convs"]}},
            "roles": {"reward": {"cpus": 0}},
        }
    )
    run_dir, namespace = str(folder / "run"), uuid.uuid4().hex
    write_marker(open_storage(run_dir))
    fleet = start_fleet(reward_specs(config, namespace), run_dir, namespace)
    try:
        FleetStart(fleet, config).wait()
        yield Bench(WorkerSpec(config, run_dir, namespace, FLEET, 100.0, "no mailbox"))
    finally:
        ray.kill(fleet)
