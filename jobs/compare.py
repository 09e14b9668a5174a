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
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from diffusers.utils.pil_utils import make_image_grid
from PIL import Image

from dav_ray.storage import open_storage
from dav_ray.summary import read_metrics

METHODS = {
    "best of 4": ["search.kind=best_of_n", "mstep.kl=0"],
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


def render(rows: dict[str, list[tuple[dict, dict, float]]]) -> str:
    """Markdown: one line per method, mean over seeds; the pretrained model from the first method's round 0."""
    base = [first for first, _, _ in next(iter(rows.values()))]
    lines = [
        "| model, sampled without search | reward | rise in sd | legibility | diversity | within prompt "
        "| KL | evaluations per sample |",
        "|---|---|---|---|---|---|---|---|",
        _line("pretrained", [(b, b, 0.0) for b in base]),
    ]
    return "\n".join(lines + [_line(name, found) for name, found in rows.items()])


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


def _run(recipe: str, run_dir: Path, seed: int, overrides: list[str]) -> tuple[dict, dict, float]:
    """First and last evaluation of a run, and the search's evaluations per accepted sample."""
    command = [
        sys.executable,
        "-m",
        "dav_ray",
        "run",
        recipe,
        f"seed={seed}",
        *overrides,
        "--run-dir",
        str(run_dir),
    ]
    print(f"# {' '.join(command[1:])}", file=sys.stderr, flush=True)
    subprocess.run(command, check=True, stdout=sys.stderr)
    metrics = read_metrics(open_storage(str(run_dir)))
    evaluated = sorted(round for round, role in metrics if role == "evaluate")
    searched = metrics[evaluated[-1], "search"]["search/nfe_per_sample"]
    return metrics[evaluated[0], "evaluate"], metrics[evaluated[-1], "evaluate"], searched


def _line(name: str, found: list[tuple[dict, dict, float]]) -> str:
    def mean(value) -> float:
        return float(np.mean([value(first, last) for first, last, _ in found]))

    rise = mean(lambda a, b: (b["evaluate/reward_mean"] - a["evaluate/reward_mean"]) / a["evaluate/reward_std"])
    cells = [
        name,
        f"{mean(lambda _, b: b['evaluate/reward_mean']):.4f}",
        f"{rise:+.2f}",
        f"{mean(lambda _, b: b['heldout/legibility']):.1%}",
        f"{mean(lambda a, b: b['diversity/features'] / a['diversity/features']):.0%}",
        f"{mean(lambda a, b: b['diversity/within_prompt'] / a['diversity/within_prompt']):.0%}",
        f"{mean(lambda _, b: b['heldout/kl']):.1f}",
        f"{np.mean([nfe for _, _, nfe in found]):.0f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
