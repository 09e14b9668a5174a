"""Train the shipped model of `dna_ehrlich`: masked diffusion of feasible sequences, with no reward in it.

    python jobs/assets ehrlich --out dav_ray/assets/ehrlich

About five minutes on two CPU cores. The same seed gives the same weights.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dav_ray.config.recipe.load import load
from dav_ray.diffusion.masked.alphabet import Alphabet, to_fasta
from dav_ray.rewards.ehrlich import Ehrlich

SEQUENCES = 20_000


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    options = parser.parse_args(words)
    function = Ehrlich(**load("dna_ehrlich").config.reward[0].args)
    texts = Alphabet.of("dna").decode(function.initial(SEQUENCES, seed=1).numpy())
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "feasible.fasta")
        data.write_text(to_fasta([str(i) for i in range(SEQUENCES)], texts))
        job = [sys.executable, str(Path(__file__).parents[1] / "pretrain_masked.py"), str(data)]
        sizes = ["--hidden", "32", "--stacks", "1", "--batch", "128", "--learning-rate", "3e-3", "--warmup", "200"]
        words = [*job, "--out", f"{folder}/model", *sizes, "--steps", str(options.steps), "--half"]
        if code := subprocess.run(words).returncode:
            sys.exit(code)  # the training has said why
        options.out.mkdir(parents=True, exist_ok=True)
        for file in ("model.safetensors", "config.json"):
            (options.out / file).write_bytes(Path(folder, "model", file).read_bytes())
    return 0
