"""Pretrained, best of N, DAV without KL and DAV with KL on one recipe, at about the same number of network evaluations.

    python jobs/compare digits|digits_flow|digits_turbo [--recipe digits] [--out runs/compare] [--seeds 0 1]
                               [--grid FILE.png] [--recipe-only] [--write-readme] [--stored] [key.sub=value ...]

Each row is a whole `dav-ray run`; a run that is finished is not run again. The table is Markdown. The grid shows the
same seeds and prompts: a row for the pretrained model, then one per method. `--write-readme` writes table and grid into
the page beside this file, `--stored` runs nothing.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from diffusers.utils.pil_utils import make_image_grid
from PIL import Image

from dav_ray.report.table import Metrics, read_metrics
from dav_ray.run_dir.storage.uri import open_storage
from jobs.compare.page import PAGE
from jobs.compare.runs import align, folder
from jobs.tables import Table, add_page_options


@dataclass(frozen=True)
class Compared:
    """A shipped recipe on the page. best_of: as many samples cost about what a searched one does."""

    title: str
    best_of: int
    grid: Path

    @property
    def methods(self) -> dict[str, list[str]]:
        """What each overrides in the recipe."""
        best = ["search.kind=best_of_n", f"search.candidates={self.best_of}", "mstep.kl=0", "mstep.candidates=winner"]
        return {f"best of {self.best_of}": best, "DAV, no KL": ["mstep.kl=0"], "DAV with KL": []}


FIGURES = PAGE.folder / "figures"
RECIPES = {
    "digits": Compared("Digits", 4, FIGURES / "aligned.png"),
    "digits_flow": Compared("Digits flow", 4, FIGURES / "aligned_flow.png"),
    "digits_turbo": Compared("Digits turbo", 6, FIGURES / "aligned_turbo.png"),
}


def main(words: Sequence[str] | None = None, recipe: str = "digits") -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=recipe)
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--grid", type=Path)
    parser.add_argument("--recipe-only", action="store_true", help="no other methods beside the recipe itself")
    add_page_options(parser)
    words = sys.argv[1:] if words is None else words
    options, overrides = parser.parse_known_args(words)
    if options.stored:
        return PAGE.show_stored(write=options.write_readme)
    if options.write_readme and options.recipe not in RECIPES:
        parser.error(f"--write-readme: --recipe {options.recipe}; allowed: {', '.join(RECIPES)}, those of the page")
    compared = RECIPES.get(options.recipe, RECIPES["digits"])
    methods = dict(list(compared.methods.items())[-1 if options.recipe_only else 0 :])
    rows = {
        name: [
            _run(options.recipe, folder(options.out, options.recipe, name, seed), seed, [*settings, *overrides])
            for seed in options.seeds
        ]
        for name, settings in methods.items()
    }
    table = render(rows, compared.title)
    print(table.markdown())
    runs = [folder(options.out, options.recipe, name, options.seeds[0]) for name in methods]
    for file in [*filter(None, [options.grid]), *([compared.grid] if options.write_readme else [])]:
        _draw(file, runs)
    if options.write_readme:
        PAGE.publish([table], [recipe, *words])
    return 0


@dataclass(frozen=True)
class Outcome:
    """What one run came to: its first and last evaluation, and its last round's search."""

    first: Metrics
    last: Metrics
    search: Metrics

    def rise(self, reward: float) -> float:
        """In standard deviations of the pretrained model's samples."""
        return (reward - self.first["evaluate/reward_mean"]) / self.first["evaluate/reward_std"]


def render(rows: dict[str, list[Outcome]], title: str = "Digits") -> Table:
    """A row per method, mean over seeds; the pretrained model from the first method's round 0. The last method is the
    recipe itself."""
    pretrained = [Outcome(found.first, found.first, {}) for found in next(iter(rows.values()))]
    shown = {name + (" (the recipe)" if name == [*rows][-1] else ""): found for name, found in rows.items()}
    lines = [_cells(name, found) for name, found in [("pretrained", pretrained), *shown.items()]]
    return Table(title, ("model", *COLUMNS), tuple(lines))


COLUMNS: dict[str, tuple[Callable[[Outcome], float | None], str]] = {
    "reward": (lambda o: o.last["evaluate/reward_mean"], ".4f"),
    "rise in sd": (lambda o: o.rise(o.last["evaluate/reward_mean"]), "+.2f"),
    "legibility": (lambda o: o.last["heldout/legibility"], ".1%"),
    "diversity": (lambda o: o.last["diversity/features"] / o.first["diversity/features"], ".0%"),
    "within prompt": (lambda o: o.last["diversity/within_prompt"] / o.first["diversity/within_prompt"], ".0%"),
    "KL": (lambda o: o.last["heldout/kl"], ".1f"),
    "rise with search": (lambda o: o.rise(o.search["reward/mean"]) if o.search else None, "+.2f"),
    "network evaluations per searched sample": (lambda o: o.search.get("search/nfe_per_sample"), ".0f"),
}


def _cells(name: str, found: list[Outcome]) -> tuple[str, ...]:
    cells = [name]
    for value, form in COLUMNS.values():
        values = [v for outcome in found if (v := value(outcome)) is not None]
        cells.append(format(float(np.mean(values)), form) if values else "")
    return tuple(cells)


def _draw(file: Path, runs: list[Path], columns: int = 20, scale: int = 2) -> None:
    """The pretrained model's samples (the first run's round 0), then each run's last ones."""
    evaluations = [sorted((run / "evaluate").glob("*.parquet")) for run in runs]
    picked = [evaluations[0][0], *(found[-1] for found in evaluations)]
    images = [
        Image.open(io.BytesIO(data))
        for path in picked
        for data in pq.read_table(path, columns=["image"]).column("image").to_pylist()[:columns]
    ]
    large = [image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST) for image in images]
    make_image_grid(large, rows=len(picked), cols=columns).save(file)


def _run(recipe: str, run_dir: Path, seed: int, overrides: list[str]) -> Outcome:
    align(recipe, run_dir, seed, overrides)
    metrics = read_metrics(open_storage(str(run_dir)))
    evaluated = sorted(round for round, role in metrics if role == "evaluate")
    first, last = evaluated[0], evaluated[-1]
    return Outcome(metrics[first, "evaluate"], metrics[last, "evaluate"], metrics[last, "search"])
