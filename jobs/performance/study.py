"""What accepted samples and optimizer steps cost, against a plain loop and against the limit of the network alone.

    python jobs/performance [--parts search fit reward waiting rewards switches growth overheads driver]
                            [--workloads digits images dna] [--turns 5] [--device cpu|cuda]
                            [--out runs/benchmark] [--write-readme] [--stored]

search: the E-step; fit: the M-step; reward: with a remote reward that is as slow as the network; waiting: how much of
the search's time goes into waiting for a reward that answers late; rewards: samples per second on one core; switches:
options that are off by default, and what they cost in exactness; growth: by M, T, batch, rounds and workers; overheads:
what a run costs beside its work; driver: chunks a second with 512 workers that sleep.
Tables on stdout, as Markdown: medians, with the range of all turns. OUT gets benchmark.json and benchmark.png. With
`--device cuda` the default is `sd15`: networks of the sizes of Stable Diffusion 1.5 with random weights, in bfloat16.
`--write-readme` writes tables and figure into the page beside this file, `--stored` measures nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dav_ray.diffusion.device import keep_freed_memory, quiet
from jobs.performance.figure import draw
from jobs.performance.options import Options
from jobs.performance.parts import driver, fit, growth, overheads, reward, rewards, search, switches, waiting
from jobs.performance.workloads import CUDA_NAMES, NAMES
from jobs.tables import Page, Table, add_page_options

PARTS = {
    "search": search.run,
    "fit": fit.run,
    "reward": reward.run,
    "waiting": waiting.run,
    "rewards": rewards.run,
    "switches": switches.run,
    "growth": growth.run,
    "overheads": overheads.run,
    "driver": driver.run,
}
PAGE = Page(Path(__file__).parent)


def main(words: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    given = arguments(words)
    if given.stored:
        return PAGE.show_stored(write=given.write_readme)
    quiet()
    keep_freed_memory()  # as search workers and ranks do
    given.out.mkdir(parents=True, exist_ok=True)
    tables = measure(given)
    if given.write_readme:
        device = torch.cuda.get_device_name() if given.device == "cuda" else ""
        PAGE.publish(tables, words, device=device, figures=given.out)
    return 0


def arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--workloads", nargs="+", choices=[*NAMES, *CUDA_NAMES])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"))
    add_page_options(parser)
    given = parser.parse_args(words)
    if given.turns < 1:
        parser.error(f"--turns {given.turns}: out of range; allowed: 1 or more")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA GPU; allowed: cpu")
    return given


def measure(given: argparse.Namespace) -> list[Table]:
    """Of all parts, each printed and added to benchmark.json as soon as it is there."""
    names = given.workloads or (CUDA_NAMES if given.device == "cuda" else NAMES)
    options = Options(names, given.turns, given.device, given.out)
    record: dict[str, list[Any]] = {}
    tables: list[Table] = []
    for part in given.parts:
        found = PARTS[part](options)
        record[part] = [dataclasses.asdict(each) for each in found.measured]
        for table in found.tables:
            print(table.markdown(), flush=True)
        tables += found.tables
        (given.out / "benchmark.json").write_text(json.dumps(record, indent=1) + "\n")
    if "search" in record:
        draw(record["search"], given.out / "benchmark.png")
    return tables
