"""How busy the GPUs of a pool are where search and training have GPUs of their own, and where they take turns on all.

Times are of `sd15` on A100s: a searched sample takes 25 s, and training takes a 14th of the search. Busy is what a GPU
does for the round's result: chunks that are searched twice, and starts, count as idle. Evaluation takes no time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.overlap.timeline import Load, run
from jobs.tables import Table

SAMPLES, SAMPLE_S, RATIO = 320, 25.0, 14.0
START_S = 30.0  # that ranks take to start, and search workers after them
ROUNDS = 10


@dataclass(frozen=True)
class Pool:
    """search: workers; ranks; chunk: samples; turns: ranks live for a round, on GPUs that search in between
    (`lifetime: round`, `idle_s: 0`); overlap: with GPUs of their own."""

    search: int
    ranks: int
    chunk: int
    turns: bool = False
    overlap: str = "none"

    @property
    def gpus(self) -> int:
        return max(self.search, self.ranks) if self.turns else self.search + self.ranks


@dataclass(frozen=True)
class Busy:
    """Shares of a round; least: of the GPU that does least, over all rounds."""

    round_s: float
    mean: float
    least: float


def busy(pool: Pool) -> Busy:
    """From the product's schedule on a clock of its own."""
    chunks, chunk_s, training = SAMPLES // pool.chunk, pool.chunk * SAMPLE_S, SAMPLES * SAMPLE_S / RATIO
    fit_s = training / pool.ranks
    between = 2 * START_S if pool.turns else 0.0
    load = Load((chunk_s,) * pool.search, chunks, pool.ranks if pool.overlap == "stream" else 1, fit_s + between)
    round_s = run(load, pool.overlap, ROUNDS).policies[-1] / ROUNDS
    searching, fitting = chunks * chunk_s / pool.search / round_s, fit_s / round_s
    if not pool.turns:
        shares = [searching] * pool.search + [fitting] * pool.ranks
    else:
        both = min(pool.search, pool.ranks)
        shares = [searching + fitting] * both + [searching] * (pool.search - both) + [fitting] * (pool.ranks - both)
    return Busy(round_s, sum(shares) / len(shares), min(shares))


POOLS = (
    Pool(4, 2, 2),
    Pool(4, 2, 2, overlap="stream"),
    Pool(4, 2, 2, turns=True),
    Pool(4, 4, 2, turns=True),
    Pool(8, 2, 2, turns=True),
    Pool(8, 8, 2, turns=True),
    Pool(14, 1, 2, overlap="stream"),
    Pool(28, 2, 2, overlap="stream"),
    Pool(60, 4, 1, overlap="stream"),
    Pool(64, 64, 1, turns=True),
)


def table(pools: Sequence[Pool] = POOLS) -> Table:
    rows = []
    for pool in pools:
        found = busy(pool)
        how = "in turns" if pool.turns else f"apart, overlap {pool.overlap}"
        shares = f"{found.mean:.0%}", f"{found.least:.0%}"
        rows.append(
            (str(pool.gpus), str(pool.search), str(pool.ranks), how, str(pool.chunk), f"{found.round_s:.0f}", *shares)
        )
    header = (
        "GPUs",
        "search workers",
        "ranks",
        "how",
        "samples per chunk",
        "seconds per round",
        "busy",
        "the least busy GPU",
    )
    note = (
        f"{SAMPLES} samples of {SAMPLE_S:g} GPU seconds a round, training a {RATIO:g}th of that. In turns, ranks take "
        f"{START_S:g} s to start in each round, and search workers after them."
    )
    return Table("Simulated: sd15 on pools of GPUs", header, tuple(rows), note)
