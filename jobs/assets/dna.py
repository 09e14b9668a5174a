"""Train the shipped DNA assets from logomaker's ARS1 data: a masked diffusion model of the mutant library, and two
oracles, on disjoint halves, that tell variants that replicate (selected) from the library.

    python jobs/assets dna --out dav_ray/assets/dna [--only oracles|model]

About half an hour on two CPU cores. The same seed and thread count give the same weights.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F

from dav_ray.rewards.oracle import ConvOracle, save_oracle
from jobs.assets.dna_data import DNA, LENGTH, Variants, ars1, split

SETTINGS = {"length": LENGTH, "channels": 32, "kernel": 11, "hidden": 32, "dropout": 0.1}
HELD_OUT = 2000  # variants on which the model's bits per token are measured
COUNT_CAP = 10  # reads of one variant beyond this say no more about it than amplification does


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=["oracles", "model"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--oracle-steps", type=int, default=3000)
    parser.add_argument("--model-steps", type=int, default=3000)
    options = parser.parse_args(words)
    options.out.mkdir(parents=True, exist_ok=True)
    variants = ars1()
    if options.only != "model":
        make_oracles(variants, options.out, options.seed, options.oracle_steps)
    if options.only != "oracles":
        make_model(variants, options.out, options.seed, options.model_steps)
    return 0


def make_oracles(variants: Variants, out: Path, seed: int, steps: int) -> None:
    first, second, test = split(variants, seed)
    oracles = {}
    for number, (name, part) in enumerate((("oracle_a", first), ("oracle_b", second))):
        oracle = train_oracle(part, seed + number, steps)
        save_oracle(out / f"{name}.safetensors", oracle, SETTINGS, ["enrichment"], half=True)
        oracles[name] = scores(oracle, test.tokens)
        print(f"{name}: AUROC {auroc(oracles[name], test):.4f} on {len(test)} variants of the test set", flush=True)
    a, b = oracles.values()
    print(f"correlation of the two oracles on the test set: {np.corrcoef(a, b)[0, 1]:.4f}")


def train_oracle(part: Variants, seed: int, steps: int, batch: int = 256) -> ConvOracle:
    """Balanced classification, selected against library, variants drawn by their counts: the logit is the log of the
    enrichment, up to a constant."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = ConvOracle(**SETTINGS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    pools = [draws(counts, steps * batch // 2, rng) for counts in (part.library, part.selected)]
    labels = torch.cat([torch.zeros(batch // 2), torch.ones(batch // 2)])
    start, running = time.monotonic(), 0.0
    for step in range(steps):
        rows = np.concatenate([pool[step * batch // 2 : (step + 1) * batch // 2] for pool in pools])
        loss = F.binary_cross_entropy_with_logits(model(one_hot(part.tokens[rows])).squeeze(1), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        running += 0.01 * (loss.item() - running) if step else loss.item()
        if (step + 1) % 500 == 0:
            print(f"  step {step + 1}: loss {running:.4f}, {time.monotonic() - start:.0f} s", flush=True)
    return model.eval().requires_grad_(False)


def draws(counts: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """`num` row numbers with probability proportional to the capped counts."""
    weight = np.minimum(counts, COUNT_CAP).astype(float)
    return rng.choice(len(counts), num, p=weight / weight.sum())


def one_hot(tokens: np.ndarray) -> torch.Tensor:
    """[B, L] -> [B, 4, L]."""
    return F.one_hot(torch.from_numpy(tokens.astype(np.int64)), 4).float().transpose(1, 2)


@torch.no_grad()
def scores(oracle: ConvOracle, tokens: np.ndarray) -> np.ndarray:
    return np.concatenate([oracle(one_hot(part)).squeeze(1).numpy() for part in np.array_split(tokens, 100)])


def auroc(score: np.ndarray, variants: Variants) -> float:
    """Probability that a selected read scores above a library read, ties counting half; reads counted up to the cap."""
    order = np.argsort(score, kind="stable")
    negative, positive = (np.minimum(c, COUNT_CAP)[order] for c in (variants.library, variants.selected))
    below = np.cumsum(negative) - negative / 2
    return float((positive * below).sum() / (positive.sum() * negative.sum()))


def make_model(variants: Variants, out: Path, seed: int, steps: int) -> None:
    """The masked model of the library's variants, through the job that trains such models."""
    library = variants.take(np.flatnonzero(variants.library > 0))
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "library.parquet")
        pq.write_table(pa.table({"sequence": DNA.decode(library.tokens)}), data)
        script = str(Path(__file__).parents[1] / "pretrain_masked.py")
        job = [sys.executable, script, str(data), "--out", f"{folder}/model", "--steps", str(steps), "--half"]
        sizes = ["--hidden", "48", "--stacks", "1", "--batch", "128", "--learning-rate", "2e-3", "--warmup", "200"]
        held_out = ["--holdout", str(HELD_OUT / len(library)), "--seed", str(seed)]
        if code := subprocess.run([*job, *sizes, *held_out]).returncode:
            sys.exit(code)  # the training has said why
        for file in ("model.safetensors", "config.json"):
            (out / file).write_bytes(Path(folder, "model", file).read_bytes())
    print(json.dumps({file.name: file.stat().st_size for file in sorted(out.iterdir())}))
