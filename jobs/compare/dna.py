"""Best-of-N, DAV without KL, DAV with KL, and the aligned model searched again, on the `dna` recipe.

    python jobs/compare dna [--out runs/compare] [--seeds 0 1] [--write-readme] [--stored] [key.sub=value ...]

Three rows are whole `dav-ray run`s, sampled without search after their last round; a run that is finished is not run
again. Two rows are searched samples, as many as a round accepts: of the pretrained model by best-of-N, and of the model
that DAV with KL ended with (the paper's posterior). Effect size: rise of the held-out oracle's median, in standard
deviations of its scores on the pretrained model's samples. `--write-readme` writes the table into the page beside this
file, `--stored` runs nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

import dav_ray
from dav_ray.config.build import pretrained, strategy
from dav_ray.config.sections.reward import Reward
from dav_ray.config.stored import read_run
from dav_ray.diffusion.masked.model import MaskedDiffusion
from dav_ray.diffusion.noise import KeyedNoise, PipelineNoise
from dav_ray.evaluation.diversity import mean_edit_distance
from dav_ray.report.table import read_metrics
from dav_ray.rewards.base import Scorer, local_scorer
from dav_ray.rewards.registry import build
from dav_ray.run_dir.storage.uri import open_storage
from dav_ray.search.options import Search
from jobs.compare.page import PAGE
from jobs.compare.runs import align, folder
from jobs.tables import Table, add_page_options

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
    "network evaluations per searched sample": ".0f",
}
Row = dict[str, float]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    add_page_options(parser)
    words = sys.argv[1:] if words is None else words
    options, overrides = parser.parse_known_args(words)
    if options.stored:
        return PAGE.show_stored(write=options.write_readme)
    rows: dict[str, list[Row]] = {}
    for seed in options.seeds:
        for name, settings in METHODS.items():
            run_dir = folder(options.out, RECIPE, name, seed)
            align(RECIPE, run_dir, seed, [*settings, *overrides])
            first, last = sampled(run_dir)
            rows.setdefault("pretrained", []).append(first)
            rows.setdefault(name, []).append(last)
        run_dir = folder(options.out, RECIPE, "DAV with KL", seed)
        config = read_run(str(run_dir)).config
        rows.setdefault(SEARCHED, []).append(searched(run_dir, config.search, dav_ray.load(str(run_dir))))
        best = config.search.model_copy(update={"kind": "best_of_n"})
        rows.setdefault(BEST, []).append(searched(run_dir, best, pretrained(config)))
    print(render(rows).markdown())
    if options.write_readme:
        PAGE.publish([render(rows)], ["dna", *words])
    return 0


def sampled(run_dir: Path) -> tuple[Row, Row]:
    """A run's samples without search: of the pretrained model, and after the last round."""
    metrics = read_metrics(open_storage(str(run_dir)))
    rounds = sorted(round for round, role in metrics if role == "evaluate")
    base, rows = metrics[rounds[0], "evaluate"], []
    spread = heldout_scores(run_dir, rounds[0]).std()
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
            row["network evaluations per searched sample"] = metrics[round, "search"]["search/nfe_per_sample"]
        rows.append(row)
    return rows[0], rows[1]


def searched(run_dir: Path, search: Search, model: MaskedDiffusion) -> Row:
    """A round's worth of searched samples of a model, measured as a run's own."""
    run, base = read_run(str(run_dir)), sampled(run_dir)[0]
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
        "effect size": (median - base["held-out oracle, median"]) / heldout_scores(run_dir, 0).std(),
        "edit distance": distance,
        "of pretrained": distance / base["edit distance"],
        "ELBO": float(elbo.mean()),
        "network evaluations per searched sample": found.cost.network / num,
    }


def heldout_scores(run_dir: Path, round: int) -> np.ndarray:
    table = pq.read_table(run_dir / "evaluate" / f"round-{round:04d}.parquet", columns=[f"heldout/{HELD_OUT}"])
    return table.column(0).to_numpy()


def render(rows: dict[str, list[Row]]) -> Table:
    """A row per method, mean over seeds."""
    lines: list[tuple[str, ...]] = []
    for name, found in rows.items():
        cells = [[row[column] for row in found if column in row] for column in COLUMNS]
        texts = [format(float(np.mean(c)), f) if c else "" for c, f in zip(cells, COLUMNS.values(), strict=True)]
        lines.append((name + (" (the recipe)" if METHODS.get(name) == [] else ""), *texts))
    return Table("DNA", ("model", *COLUMNS), tuple(lines))


def _scorer(rewards: list[Reward] | tuple[Reward, ...]) -> Scorer:
    return local_scorer([(r.label, r.weight, build(r.kind, r.args)) for r in rewards])
