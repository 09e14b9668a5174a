"""The runs that are compared: one per method and seed, each in a folder of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def folder(out: Path, recipe: str, method: str, seed: int) -> Path:
    return out / f"{recipe}-{method.replace(', ', '-').replace(' ', '-')}-seed{seed}"


def align(recipe: str, run_dir: Path, seed: int, overrides: Sequence[str]) -> None:
    """`dav-ray run`, which does nothing for a run that is finished. SystemExit with its code if it fails."""
    command = [sys.executable, "-m", "dav_ray", "run", recipe, f"seed={seed}", *overrides, "--run-dir", str(run_dir)]
    print(f"# {' '.join(command[1:])}", file=sys.stderr, flush=True)
    if code := subprocess.run(command, stdout=sys.stderr).returncode:
        sys.exit(code)  # the run has said why
