"""Best-of-N, DAV without KL, DAV with KL, and the aligned model searched again, on the `dna` recipe.

    python jobs/compare_dna.py [--out runs/compare] [--seeds 0 1] [key.sub=value ...]

Three rows are whole `dav-ray run`s, sampled without search after their last round; a run that is finished is not run
again. Two rows are searched samples, as many as a round accepts: of the pretrained model by best-of-N, and of the model
that DAV with KL ended with (the paper's posterior). Effect size: rise of the held-out oracle's median, in standard
deviations of its scores on the pretrained model's samples.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

import dav_ray
from dav_ray.diffusion.families import pretrained
from dav_ray.diffusion.masked import MaskedDiffusion
from dav_ray.noise import KeyedNoise, PipelineNoise
from dav_ray.rewards.base import Scorer, local_scorer
from dav_ray.rewards.options import Reward
from dav_ray.rewards.registry import build
from dav_ray.run_files import read_run
from dav_ray.samples.diversity import mean_edit_distance
from dav_ray.search.base import strategy
from dav_ray.search.options import Search
from dav_ray.storage import open_storage
from dav_ray.summary import read_metrics

RECIPE, HELD_OUT = "dna", "heldout_oracle"
METHODS = {
    "fitted to best of 8": ["search.kind=best_of_n", "mstep.kl=0", "mstep.candidates=winner"],
    "DAV, no KL": ["mstep.kl=0"],
    "DAV with KL": [],
}
BEST, SEARCHED = "pretrained, best of 8", "DAV with KL, searched again"
COLUMNS = {
    "reward, median": ".2f",
    "held-out oracle, median": ".2f",
    "effect size": "+.2f",
    "edit distance": ".1f",
    "of pretrained": ".0%",
    "ELBO": ".1f",
    "KL": ".1f",
    "evaluations per searched sample": ".0f",
}
Row = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options, overrides = parser.parse_known_args()
    rows: dict[str, list[Row]] = {}
    for seed in options.seeds:
        for name, settings in METHODS.items():
            folder = options.out / f"{RECIPE}-{name.replace(', ', '-').replace(' ', '-')}-seed{seed}"
            align(folder, [f"seed={seed}", *settings, *overrides])
            first, last = sampled(folder)
            rows.setdefault("pretrained", []).append(first)
            rows.setdefault(name, []).append(last)
        config = read_run(str(folder)).config
        rows.setdefault(SEARCHED, []).append(searched(folder, config.search, dav_ray.load(str(folder))))
        best = config.search.model_copy(update={"kind": "best_of_n"})
        rows.setdefault(BEST, []).append(searched(folder, best, pretrained(config)))
    print(render(rows))


def align(folder: Path, settings: list[str]) -> None:
    command = [sys.executable, "-m", "dav_ray", "run", RECIPE, *settings, "--run-dir", str(folder)]
    print(f"# {' '.join(command[1:])}", file=sys.stderr, flush=True)
    if code := subprocess.run(command, stdout=sys.stderr).returncode:
        sys.exit(code)  # the run has said why


def sampled(folder: Path) -> tuple[Row, Row]:
    """A run's samples without search: of the pretrained model, and after the last round."""
    metrics = read_metrics(open_storage(str(folder)))
    rounds = sorted(round for round, role in metrics if role == "evaluate")
    base, rows = metrics[rounds[0], "evaluate"], []
    spread = heldout_scores(folder, rounds[0]).std()
    for round in (rounds[0], rounds[-1]):
        found = metrics[round, "evaluate"]
        distance = found["diversity/edit_distance"]
        row = {
            "reward, median": found["median/reward"],
            "held-out oracle, median": found[f"median/{HELD_OUT}"],
            "effect size": (found[f"median/{HELD_OUT}"] - base[f"median/{HELD_OUT}"]) / spread,
            "edit distance": distance,
            "of pretrained": distance / base["diversity/edit_distance"],
            "ELBO": found["heldout/elbo"],
            "KL": found["heldout/kl"],
        }
        if round:
            row["evaluations per searched sample"] = metrics[round, "search"]["search/nfe_per_sample"]
        rows.append(row)
    return rows[0], rows[1]


def searched(folder: Path, search: Search, model: MaskedDiffusion) -> Row:
    """A round's worth of searched samples of a model, measured as a run's own."""
    run, base = read_run(str(folder)), sampled(folder)[0]
    config = run.config
    num = config.search.trajectories
    conditions = [config.prompts[i % len(config.prompts)] for i in range(num)]
    noise = KeyedNoise(config.seed, config.rounds + 1, range(num))
    found = strategy(search, run.manifest.alpha)(model, _scorer(config.reward), conditions, noise)
    held_out = _scorer([r for r in config.evaluate.heldout if r.label == HELD_OUT]).score(found.sample, conditions)
    median, distance = float(held_out.median()), mean_edit_distance(model.alphabet.decode(found.sample.numpy()))
    rng = PipelineNoise(range(num)).at(0)
    elbo = pretrained(config).elbo(found.sample, conditions, rng, config.evaluate.elbo_draws)
    return {
        "reward, median": float(found.reward.median()),
        "held-out oracle, median": median,
        "effect size": (median - base["held-out oracle, median"]) / heldout_scores(folder, 0).std(),
        "edit distance": distance,
        "of pretrained": distance / base["edit distance"],
        "ELBO": float(elbo.mean()),
        "evaluations per searched sample": found.cost.network / num,
    }


def heldout_scores(folder: Path, round: int) -> np.ndarray:
    table = pq.read_table(folder / "evaluate" / f"round-{round:04d}.parquet", columns=[f"heldout/{HELD_OUT}"])
    return table.column(0).to_numpy()


def render(rows: dict[str, list[Row]]) -> str:
    """Markdown: one line per method, mean over seeds."""
    lines = [["model", *COLUMNS], ["---"] * (len(COLUMNS) + 1)]
    for name, found in rows.items():
        cells = [[row[column] for row in found if column in row] for column in COLUMNS]
        texts = [format(float(np.mean(c)), f) if c else "" for c, f in zip(cells, COLUMNS.values(), strict=True)]
        lines.append([name, *texts])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _scorer(rewards: list[Reward] | tuple[Reward, ...]) -> Scorer:
    return local_scorer([(r.label, r.weight, build(r.kind, r.args)) for r in rewards])


if __name__ == "__main__":
    main()
