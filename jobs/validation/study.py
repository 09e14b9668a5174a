"""Whether the search samples what it claims, on problems whose answers are known: tables and figures.

    python jobs/validation [--out runs/validate] [--parts masked em gaussian mixtures flow] [--scale 1] [--seed 0]
                           [--write-readme] [--stored]

Prints the tables as Markdown, and writes them to `tables.md` beside the figures. scale: number of samples relative to
the tables of the page; a tenth gives a rough look in a tenth of the time. One process, no Ray, no GPU.
`--write-readme` writes tables and figures into the page beside this file, `--stored` measures nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch

from jobs.tables import Page, Table, add_page_options
from jobs.validation import bound, em, flow, gaussian, masked, mixtures, mixtures_em
from jobs.validation.options import Options

PARTS = {
    "masked": (masked.run,),
    "em": (em.run, bound.run),
    "gaussian": (gaussian.run,),
    "mixtures": (mixtures.run, mixtures_em.run),
    "flow": (flow.run,),
}
PAGE = Page(Path(__file__).parent)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/validate"))
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    add_page_options(parser)
    words = sys.argv[1:] if words is None else words
    given = parser.parse_args(words)
    if not 0 < given.scale <= 100:
        parser.error(f"--scale {given.scale}: out of range; allowed: a number > 0 and <= 100")
    if given.stored:
        return PAGE.show_stored(write=given.write_readme)
    given.out.mkdir(parents=True, exist_ok=True)
    matplotlib.use("Agg")
    torch.set_num_threads(1)  # the problems are small: threads would only wait for each other
    tables = [table for part in given.parts for table in measure(part, Options(given.out, given.scale, given.seed))]
    (given.out / "tables.md").write_text("\n".join(table.markdown() for table in tables), encoding="utf-8")
    if given.write_readme:
        PAGE.publish(tables, words, figures=given.out)
    return 0


def measure(part: str, options: Options) -> list[Table]:
    """Its tables, printed as soon as they are there."""
    start, tables = time.monotonic(), list[Table]()
    for run in PARTS[part]:
        found = run(options)
        print("\n".join(table.markdown() for table in found), flush=True)
        tables += found
    print(f"{part}: {time.monotonic() - start:.0f} s\n", flush=True)
    return tables
