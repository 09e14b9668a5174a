"""The same chunk twice, by a model that is loaded anew: the same bits? And by how much half precision moves choices."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch

from dav_ray.diffusion.device import free_memory
from dav_ray.run_dir import shards
from jobs.gpu_hour.record import Result
from jobs.gpu_hour.setting import Setting, chunk_of
from jobs.gpu_hour.steps.base import Measure, Step, cells
from jobs.performance.parts.search import search
from jobs.performance.parts.switches import choice_gap
from jobs.performance.workloads import Workload
from jobs.tables import Table

CASES = ["bfloat16", "float16", "float32"]
BATCH = 2  # trajectories


@contextlib.contextmanager
def opened(setting: Setting) -> Iterator[Measure]:
    def work(dtype: str) -> Workload:
        config = setting.config(f"model.dtype={dtype}")
        return Workload(
            dtype, config, setting.diffusion(config), setting.scorer(config), chunk_of(config, BATCH), setting.device
        )

    def sha(dtype: str) -> str:
        made = work(dtype)
        with torch.no_grad():
            return shards.encode(shards.to_table(made.chunk, search(made)))[1]

    def measure(case: str) -> Result:
        first, again = sha(case), sha(case)
        free_memory()
        with torch.no_grad():
            moved = choice_gap(work("float32"), work(case)) if case != "float32" else 0.0
        return {"same_bits": first == again, "sha256": first, "choices_moved": moved}

    yield measure


def table(results: Mapping[str, Result]) -> Table:
    rows = tuple((case, *cells(each, "same_bits", "choices_moved")) for case, each in results.items())
    return Table("The same chunk twice", ("weights", "same bits", "a step's choice moved against float32, TV"), rows)


STEP = Step("same-chunk", lambda setting: CASES, opened, table)
