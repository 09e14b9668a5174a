"""What accepted samples and optimizer steps cost, against a plain loop and against the limit of the network alone.

    python jobs/benchmark.py [--parts search fit reward switches growth overheads] [--workloads digits images dna]
                             [--turns 5] [--device cpu|cuda] [--out runs/benchmark]

search: the E-step; fit: the M-step; reward: with a remote reward that is as slow as the network; switches: options
that are off by default, and what they cost in exactness; growth: by M, T, batch, rounds and workers; overheads: what a
run costs beside its work. Tables on stdout, as Markdown: medians, with the range of all turns. OUT gets benchmark.json
and benchmark.png. With `--device cuda` the default is `sd15`: networks of the sizes of Stable Diffusion 1.5 with random
weights, in bfloat16.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from performance import fit, growth, overheads, reward, search, switches  # noqa: E402
from performance.figure import draw  # noqa: E402
from performance.options import Options  # noqa: E402
from performance.workloads import CUDA_NAMES, NAMES  # noqa: E402

from dav_ray.device import keep_freed_memory, quiet  # noqa: E402

PARTS = {
    "search": search.run,
    "fit": fit.run,
    "reward": reward.run,
    "switches": switches.run,
    "growth": growth.run,
    "overheads": overheads.run,
}


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--workloads", nargs="+", choices=[*NAMES, *CUDA_NAMES])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"))
    given = parser.parse_args(words)
    if given.turns < 1:
        parser.error(f"--turns {given.turns}: out of range; allowed: 1 or more")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA GPU; allowed: cpu")
    quiet()
    keep_freed_memory()  # as search workers and ranks do
    given.out.mkdir(parents=True, exist_ok=True)
    names = given.workloads or (CUDA_NAMES if given.device == "cuda" else NAMES)
    options = Options(names, given.turns, given.device, given.out)
    record: dict[str, list[Any]] = {}
    for part in given.parts:
        found = PARTS[part](options)
        record[part] = [dataclasses.asdict(each) for each in found.measured]
        for table in found.tables:
            print(table.markdown(), flush=True)
        (given.out / "benchmark.json").write_text(json.dumps(record, indent=1) + "\n")
    if "search" in record:
        draw(record["search"], given.out / "benchmark.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
