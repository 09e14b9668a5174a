"""The table of families: does each adapter say what its pipeline says, and does a whole run with it work.

    python jobs/families [--families CLASS ...] [--without-runs] [--out runs/families] [--write-readme] [--stored]

Each family's pipeline is built here: the real classes, tiny, with random weights. A row says the largest difference of
the network's guided outputs and of whole pictures from those of the pipeline's own call; of the pictures after LoRA
adapters were written by the adapter and loaded by the pipeline; and what a whole run through Ray took, whose samples
the loaded pipeline has to give back. What `--out` has already is not measured again. Exit code 1 where a
difference is too large or a run fails. `--write-readme` writes the table into the page beside this file, `--stored`
measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from jobs.families.measured import MOST_APART, MOST_LEVELS, Differences, Row, Run, faults, oracle, round_trip
from jobs.families.whole_run import RunFailed, whole_run
from jobs.tables import Page, Table, add_page_options
from tests.support.pipelines.cases import CASES

PAGE = Page(Path(__file__).parent)


def measured(name: str) -> Differences:
    """Of a pipeline's class."""
    case = CASES[name]
    with tempfile.TemporaryDirectory() as there:
        folder = Path(there)
        output, picture = oracle(case, folder / "oracle")
        apart, moved = round_trip(case, folder / "policy")
    return Differences(output, picture, apart, moved)


def kept(file: Path, cls: type[Any], measure: Callable[[], Any]) -> Any:
    """What a file says of an earlier measurement, or a new one."""
    if file.exists():
        return cls(**json.loads(file.read_text(encoding="utf-8")))
    found = measure()
    file.write_text(json.dumps(asdict(found)) + "\n", encoding="utf-8")
    return found


def row(name: str, out: Path, *, run: bool) -> Row:
    """Of a pipeline's class; what was measured before is read. run: with a whole run."""
    folder = (out / name).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    apart = kept(folder / "differences.json", Differences, lambda: measured(name))
    whole = kept(folder / "run.json", Run, lambda: whole_run(CASES[name], folder)) if run else None
    return Row(name, apart, whole)


def cells(row: Row) -> tuple[str, ...]:
    run = row.run
    whole = ("", "") if run is None else (f"{run.levels} of 255", f"{run.seconds:.0f}")
    apart = row.differences
    return row.pipeline, *(f"{value:.0e}" for value in (apart.output, apart.picture, apart.round_trip)), *whole


def table(rows: Sequence[Row]) -> Table:
    header = ("pipeline", "network's output", "whole picture", "LoRA loaded again", "a run's samples", "run, seconds")
    note = (
        "Largest differences from the pipeline's own call; outputs have a size of about 1, pictures are in [0, 1]. "
        "LoRA loaded again: by the pipeline's `load_lora_weights`; DDPM and DDIM have none: as `dav_ray.load` does. "
        "A run's samples: those of its last evaluation, which are stored as 8-bit pictures, and those that the "
        "pipeline of `dav_ray.load` gives. The run: two rounds of search, reward, training and evaluation, from the "
        "command to its end, most of it starts of processes."
    )
    return Table("Families", header, tuple(cells(row) for row in rows), note)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=list(CASES), default=list(CASES), metavar="CLASS")
    parser.add_argument("--without-runs", action="store_true", help="differences alone: a minute")
    parser.add_argument("--out", type=Path, default=Path("runs/families"))
    add_page_options(parser)
    words = sys.argv[1:] if words is None else words
    given = parser.parse_args(words)
    if given.stored:
        return PAGE.show_stored(write=given.write_readme)
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    found, wrong = list[Row](), list[str]()
    for name in given.families:
        try:
            found.append(row(name, given.out, run=not given.without_runs))
        except RunFailed as failed:
            wrong.append(f"{name}: {failed}")
            continue
        print(" ".join(cells(found[-1])), file=sys.stderr, flush=True)
        wrong += [f"{name}: {fault}" for fault in faults(found[-1])]
    print(table(found).markdown(), flush=True)
    print("\n".join(wrong) or f"all differences up to {MOST_APART:.0e}, and {MOST_LEVELS} of 255", file=sys.stderr)
    if given.write_readme:
        PAGE.publish([table(found)], words)
    return 1 if wrong else 0
