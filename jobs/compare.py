"""Pretrained, best-of-N, DAV without KL and DAV with KL on one recipe, at the same number of network evaluations.

    python jobs/compare.py [--recipe digits] [--out runs/compare] [--seeds 0 1] [--grid FILE.png] [key.sub=value ...]

Each row is a whole `dav-ray run`; a run that is finished is not run again. The table is Markdown. The grid shows the
same seeds and prompts: a row for the pretrained model, then one per method.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from diffusers.utils.pil_utils import make_image_grid
from PIL import Image

from dav_ray.storage import open_storage
from dav_ray.summary import Metrics, read_metrics

METHODS = {
    "best of 4": ["search.kind=best_of_n", "mstep.kl=0", "mstep.candidates=winner"],
    "DAV, no KL": ["mstep.kl=0"],
    "DAV with KL": [],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--grid", type=Path)
    options, overrides = parser.parse_known_args()
    rows = {
        name: [
            _run(options.recipe, _folder(options, name, seed), seed, [*settings, *overrides]) for seed in options.seeds
        ]
        for name, settings in METHODS.items()
    }
    print(render(rows))
    if options.grid:
        _draw(options.grid, [_folder(options, name, options.seeds[0]) for name in METHODS])


def _folder(options: argparse.Namespace, name: str, seed: int) -> Path:
    return options.out / f"{options.recipe}-{name.replace(', ', '-').replace(' ', '-')}-seed{seed}"


@dataclass(frozen=True)
class Outcome:
    """What one run came to: its first and last evaluation, and its last round's search."""

    first: Metrics
    last: Metrics
    search: Metrics

    def rise(self, reward: float) -> float:
        """In standard deviations of the pretrained model's samples."""
        return (reward - self.first["evaluate/reward_mean"]) / self.first["evaluate/reward_std"]


def render(rows: dict[str, list[Outcome]]) -> str:
    """Markdown: one line per method, mean over seeds; the pretrained model from the first method's round 0."""
    header = ["model", *COLUMNS]
    pretrained = [Outcome(found.first, found.first, {}) for found in next(iter(rows.values()))]
    lines = [header, ["---"] * len(header), _cells("pretrained", pretrained)]
    lines += [_cells(name, found) for name, found in rows.items()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


COLUMNS: dict[str, tuple[Callable[[Outcome], float | None], str]] = {
    "reward": (lambda o: o.last["evaluate/reward_mean"], ".4f"),
    "rise in sd": (lambda o: o.rise(o.last["evaluate/reward_mean"]), "+.2f"),
    "legibility": (lambda o: o.last["heldout/legibility"], ".1%"),
    "diversity": (lambda o: o.last["diversity/features"] / o.first["diversity/features"], ".0%"),
    "within prompt": (lambda o: o.last["diversity/within_prompt"] / o.first["diversity/within_prompt"], ".0%"),
    "KL": (lambda o: o.last["heldout/kl"], ".1f"),
    "rise with search": (lambda o: o.rise(o.search["reward/mean"]) if o.search else None, "+.2f"),
    "evaluations per searched sample": (lambda o: o.search.get("search/nfe_per_sample"), ".0f"),
}


def _cells(name: str, found: list[Outcome]) -> list[str]:
    cells = [name]
    for value, form in COLUMNS.values():
        values = [v for outcome in found if (v := value(outcome)) is not None]
        cells.append(format(float(np.mean(values)), form) if values else "")
    return cells


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
    command = [sys.executable, "-m", "dav_ray", "run", recipe, f"seed={seed}", *overrides, "--run-dir", str(run_dir)]
    print(f"# {' '.join(command[1:])}", file=sys.stderr, flush=True)
    if code := subprocess.run(command, stdout=sys.stderr).returncode:
        sys.exit(code)  # the run has said why
    metrics = read_metrics(open_storage(str(run_dir)))
    evaluated = sorted(round for round, role in metrics if role == "evaluate")
    first, last = evaluated[0], evaluated[-1]
    return Outcome(metrics[first, "evaluate"], metrics[last, "evaluate"], metrics[last, "search"])


if __name__ == "__main__":
    main()
