"""Train the shipped model of `dna_ehrlich`: masked diffusion of feasible sequences, with no reward in it.

    python jobs/make_ehrlich.py --out dav_ray/assets/ehrlich

About five minutes on two CPU cores. The same seed gives the same weights.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from dav_ray.recipe import load
from dav_ray.rewards.ehrlich import Ehrlich
from dav_ray.sequences import Alphabet, to_fasta

SEQUENCES = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    options = parser.parse_args()
    function = Ehrlich(**load("dna_ehrlich").config.reward[0].args)
    texts = Alphabet.of("dna").decode(function.initial(SEQUENCES, seed=1).numpy())
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "feasible.fasta")
        data.write_text(to_fasta([str(i) for i in range(SEQUENCES)], texts))
        job = [sys.executable, str(Path(__file__).with_name("pretrain_masked.py")), str(data)]
        sizes = ["--hidden", "32", "--stacks", "1", "--batch", "128", "--learning-rate", "3e-3", "--warmup", "200"]
        words = [*job, "--out", f"{folder}/model", *sizes, "--steps", str(options.steps), "--half"]
        if code := subprocess.run(words).returncode:
            sys.exit(code)  # the training has said why
        options.out.mkdir(parents=True, exist_ok=True)
        for file in ("model.safetensors", "config.json"):
            (options.out / file).write_bytes(Path(folder, "model", file).read_bytes())


if __name__ == "__main__":
    main()
