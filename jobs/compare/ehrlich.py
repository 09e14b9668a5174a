"""DAV and a genetic algorithm on the Ehrlich function of a finished run, at the same number of reward calls.

    python jobs/compare ehrlich RUN_DIR [--seeds 0 1 2] [--population 1000] [--write-readme] [--stored]

Prints a Markdown table with a line per round. Reward calls are those of the search; the fresh samples that the run
evaluates, and never learns from, are not counted. DAV best: the highest reward of an accepted sample so far; DAV
median: of the round's accepted samples; without search: of the fresh ones; infeasible ones (-inf) included. GA best and
median: of `genetic`, mean over seeds, at its last generation within the same calls; the median leaves the infeasible
out. The calls of a round that was resumed are known only from its restart on: compare runs that were not.
`--write-readme` writes the table into the page beside this file, `--stored` compares nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dav_ray.config.recipe.load import from_yaml
from dav_ray.errors import UserError
from dav_ray.report.data import load_table
from dav_ray.report.table import read_metrics
from dav_ray.rewards.ehrlich import Ehrlich
from dav_ray.run_dir.manifest import round_manifest_path
from dav_ray.run_dir.storage.interface import Storage
from dav_ray.run_dir.storage.uri import open_storage
from jobs.compare.page import PAGE
from jobs.tables import Table, add_page_options

SURVIVAL = 0.1  # share of a population that has children


@dataclass(frozen=True)
class Standing:
    """Where an optimiser stands after some reward calls. best: highest reward so far, None before any call."""

    calls: int
    best: float | None
    median: float


def genetic(function: Ehrlich, calls: int, population: int, seed: int, start: Tensor) -> list[Standing]:
    """A genetic algorithm that scores exactly `calls` sequences, `start` [N, L] first; one entry per generation.

    The best SURVIVAL * population different sequences so far are the parents of `population` children: each takes what
    lies between two cuts from one parent and the rest from another, then draws each letter anew with probability 1 / L.
    Infeasible children die. median: of the living of the generation just scored, -inf if there are none.
    """
    rng, keep = np.random.default_rng(seed), max(2, round(SURVIVAL * population))
    children, spent = start[:calls].numpy(), 0
    parents, values = children[:0], np.empty(0)
    found = []
    while len(children):
        scores = function(torch.from_numpy(children), ("",) * len(children)).numpy()
        spent += len(children)
        living = scores > -np.inf
        # without its copies a sequence can't take all places of the parents
        parents, first = np.unique(np.concatenate([parents, children[living]]), axis=0, return_index=True)
        values = np.concatenate([values, scores[living]])[first]
        if not len(parents):
            raise ValueError("start: all its sequences are infeasible; allowed: at least one that is not")
        fittest = np.argsort(-values, kind="stable")[:keep]
        parents, values = parents[fittest], values[fittest]
        median = float(np.median(scores[living])) if living.any() else -np.inf
        found.append(Standing(spent, float(values[0]), median))
        children = _breed(parents, min(population, calls - spent), function.letters, rng)
    return found


def _breed(parents: np.ndarray, num: int, letters: int, rng: np.random.Generator) -> np.ndarray:
    """Children [num, L] of pairs drawn from `parents` [K, L]."""
    length = parents.shape[1]
    mother, father = parents[rng.integers(len(parents), size=(2, num))]
    cuts = np.sort(rng.integers(length + 1, size=(num, 2)), axis=1)
    place = np.arange(length)
    children = np.where((cuts[:, :1] <= place) & (place < cuts[:, 1:]), father, mother)
    drawn = rng.integers(letters, size=(num, length))
    return np.where(rng.random((num, length)) < 1 / length, drawn, children)


def problem(storage: Storage) -> Ehrlich:
    """The function that a run maximised. UserError where its reward is another one."""
    where = f"{storage.uri}/config.yaml"
    try:
        rewards = from_yaml(storage.read("config.yaml").decode(), where).config.reward
    except FileNotFoundError:
        raise UserError(f"{where}: does not exist; allowed: the directory of a run") from None
    if len(rewards) != 1 or rewards[0].kind != "ehrlich" or rewards[0].weight != 1:
        raise UserError(f"{where}: reward = {', '.join(r.label for r in rewards)}; allowed: ehrlich alone, weight 1")
    return Ehrlich(**rewards[0].args)


@dataclass(frozen=True)
class Round:
    """DAV after a round: reward calls so far, the best accepted so far, medians of this round's accepted samples and of
    fresh ones without search (infeasible ones included)."""

    calls: int
    best: float | None
    accepted: float | None
    fresh: float


def progress(storage: Storage) -> dict[int, Round]:
    """DAV at the end of each round that was evaluated; round 0 is the pretrained model."""
    metrics, found = read_metrics(storage), {}
    calls, best, median = 0, None, None
    for round in sorted(number for number, role in metrics if role == "evaluate"):
        if round > 0:
            calls += int(metrics[round, "search"]["search/reward_calls"])
            shards = json.loads(storage.read(round_manifest_path(round)))["shards"]
            accepted = np.concatenate([_rewards(storage, shard["path"]) for shard in shards])
            best, median = max(float(accepted.max()), -np.inf if best is None else best), float(np.median(accepted))
        fresh = _rewards(storage, f"evaluate/round-{round:04d}.parquet")
        found[round] = Round(calls, best, median, float(np.median(fresh)))
    return found


def _rewards(storage: Storage, path: str) -> np.ndarray:
    return load_table(storage, path, ["reward"]).column("reward").to_numpy()


def render(dav: dict[int, Round], rivals: Sequence[Sequence[Standing]]) -> Table:
    """rivals: one history of `genetic` per seed."""
    header = ("round", "reward calls", "DAV best", "DAV median", "without search", "GA best", "GA median")
    lines: list[tuple[str, ...]] = []
    for round, own in dav.items():
        then = [[s for s in history if s.calls <= own.calls][-1:] for history in rivals]
        others = [standing for last in then for standing in last]
        lines.append(
            (
                str(round),
                str(own.calls),
                _mean([own.best]),
                _mean([own.accepted]),
                _mean([own.fresh]),
                _mean([other.best for other in others]),
                _mean([other.median for other in others]),
            )
        )
    return Table("Ehrlich function", header, tuple(lines))


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.3f}" if known else ""


def compare(run_dir: str, seeds: Sequence[int], population: int) -> Table:
    """The table of a run."""
    storage = open_storage(run_dir)
    function, dav = problem(storage), progress(storage)
    if not dav:
        raise UserError(f"{run_dir}: no round was evaluated; allowed: a run that has finished at least one")
    calls = max(standing.calls for standing in dav.values())
    return render(
        dav, [genetic(function, calls, population, seed, function.initial(population, seed)) for seed in seeds]
    )


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", nargs="?", help="of a finished run with reward ehrlich")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--population", type=int, default=1000)
    add_page_options(parser)
    words = sys.argv[1:] if words is None else words
    options = parser.parse_args(words)
    if options.stored:
        return PAGE.show_stored(write=options.write_readme)
    if options.run_dir is None:
        parser.error("RUN_DIR: is missing; allowed: the directory of a run")
    try:
        table = compare(options.run_dir, options.seeds, options.population)
    except UserError as error:
        print("\n".join(f"compare_ehrlich: {line}" for line in error.lines), file=sys.stderr)
        return 2
    print(table.markdown())
    if options.write_readme:
        PAGE.publish([table], ["ehrlich", *words])
    return 0
