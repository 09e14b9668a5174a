"""Whether the search samples what it claims, on problems whose answers are known: tables and figures.

    python jobs/validate.py [--out runs/validate] [--parts masked em gaussian mixtures] [--scale 1] [--seed 0]

Prints the tables as Markdown, and writes them to `tables.md` beside the figures. scale: number of samples relative to
the tables of the README; a tenth gives a rough look in a tenth of the time. One process, no Ray, no GPU.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import matplotlib
import torch
from validation import em, gaussian, masked, mixtures
from validation.tables import Options

PARTS = {"masked": masked.run, "em": em.run, "gaussian": gaussian.run, "mixtures": mixtures.run}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/validate"))
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if not 0 < given.scale <= 100:
        parser.error(f"--scale {given.scale}: out of range; allowed: a number > 0 and <= 100")
    given.out.mkdir(parents=True, exist_ok=True)
    matplotlib.use("Agg")
    torch.set_num_threads(1)  # the problems are small: threads would only wait for each other
    written: list[str] = []
    for part in given.parts:
        start = time.monotonic()
        for table in PARTS[part](Options(given.out, given.scale, given.seed)):
            written.append(table.markdown())
            print(written[-1], flush=True)
        print(f"{part}: {time.monotonic() - start:.0f} s\n", flush=True)
    (given.out / "tables.md").write_text("\n".join(written), encoding="utf-8")


if __name__ == "__main__":
    main()
