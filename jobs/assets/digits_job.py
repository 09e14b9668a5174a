"""What the jobs share that make further pipelines of digits: their options, and the check of what they made."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dav_ray.config.model_path import ASSETS
from dav_ray.rewards.digits import DIGIT_NAMES, DigitLegibility
from jobs.assets.digits import write_grid
from jobs.assets.digits_data import within_label_distance

FIGURES = Path(__file__).with_name("figures")


def run(
    words: Sequence[str] | None,
    about: str | None,
    name: str,
    steps: int,
    make: Callable[[Path, int, int], list[float]],
    sample: Callable[[Path, int], tuple[Tensor, Tensor]],
) -> int:
    """The program that makes `name`. make(out, seed, steps): trains and saves; sample(out, count): draws `count`
    samples of what was saved, and says of which digits, [count]."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ASSETS / name, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=steps, help="of training")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--check", type=int, default=500, help="samples in the legibility check; 0 skips it")
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    start = time.process_time()
    make(options.out, options.seed, options.steps)
    print(f"trained in {time.process_time() - start:.0f} CPU s")
    if options.check:
        check(options.out, name, *sample(options.out, options.check))
    return 0


def check(out: Path, name: str, images: Tensor, labels: Tensor) -> None:
    """Print the size of what was saved, legibility and variety of its samples, and draw a grid of them: the page's
    figure where it is the shipped model, else beside what was saved."""
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    legible = DigitLegibility()(images, [DIGIT_NAMES[label] for label in labels]).mean()
    print(f"{size:,} bytes; {legible:.3f} of {len(labels)} samples legible")
    print(f"within-prompt distance {within_label_distance(images, labels):.2f}")
    write_grid(images, labels, FIGURES / f"{name}.png" if out == ASSETS / name else out.with_suffix(".png"))
