"""What the three kinds of `overlap` gain: busy shares, time per round, reward per hour. Tables on stdout, as Markdown.

    python jobs/overlap [--parts simulated pools real] [--out runs/overlap] [--json FILE] [--rounds 4]
                        [--write-readme] [--stored]

simulated: the product's schedule on a clock of its own, 16 workers whose speeds differ up to fourfold, with exact EM
for the rewards. pools: on the same clock, how busy the GPUs of a pool are with `sd15`, where search and training have
GPUs of their own and where they take turns. real: the shipped recipe `digits`, cut down so that one search worker and
one rank are busy for about equally long, once with each kind of overlap; about two minutes each on two cores.
`--write-readme` writes the tables into the page beside this file, `--stored` measures nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dav_ray.report.table import read_metrics
from dav_ray.run_dir.storage.uri import open_storage
from jobs.overlap import pools
from jobs.overlap.em import SETTINGS, Setting, rewards
from jobs.overlap.timeline import OVERLAPS, Load, run, search_seconds, time_to, workers
from jobs.tables import Page, Table, add_page_options

RATIOS = {"3:1": 3.0, "1:1": 1.0, "1:3": 1 / 3}  # seconds of a round's search over seconds of its training
CHUNKS, GROUP = 96, 6
PARTS = ("simulated", "pools", "real")
SHARE, SIMULATED_ROUNDS, SETTLED = 0.9, 40, 100
PAGE = Page(Path(__file__).parent)

CUT = (
    *("search.trajectories=32", "search.chunk=4", "search.candidates=2", "mstep.group=1", "mstep.epochs=2"),
    *("evaluate.samples=64", "evaluate.batch=32", "evaluate.kl_samples=8"),
    *("roles.search.replicas=1", "roles.train.replicas=1"),
)

Row = dict[str, Any]


# ---- simulated ----


def simulated() -> list[Row]:
    """One row per ratio and kind of overlap."""
    paces, rows = workers(), []
    curves = {(setting, lag): rewards(setting, lag, SIMULATED_ROUNDS) for setting in SETTINGS for lag in (0, 1)}
    settled = {setting: rewards(setting, 0, SETTLED)[-1] for setting in SETTINGS}
    for name, ratio in RATIOS.items():
        load = Load(paces, CHUNKS, GROUP, search_seconds(paces, CHUNKS) / ratio)
        for overlap in OVERLAPS:
            line = run(load, overlap, SIMULATED_ROUNDS)
            lag = int(overlap == "round")
            reached = {s.title: time_to(SHARE, curves[s, lag], line.policies, settled[s]) for s in SETTINGS}
            rows.append(
                {
                    "search:train": name,
                    "overlap": overlap,
                    "round_s": line.round_s,
                    "busy_search": line.search_busy,
                    "busy_train": line.train_busy,
                    "seconds_to_90": reached,
                }
            )
    return rows


def simulated_tables(rows: Sequence[Row]) -> list[Table]:
    header = ("search : training", "overlap", "seconds per round", "busy: search", "busy: training")
    times = tuple(
        (row["search:train"], row["overlap"], f"{row['round_s']:.0f}", _share(row, "search"), _share(row, "train"))
        for row in rows
    )
    gains = tuple(
        (row["search:train"], row["overlap"], *(_gain(row, _none(rows, row), setting) for setting in SETTINGS))
        for row in rows
    )
    return [
        Table("Simulated: 16 workers of fourfold speeds, 96 chunks a round, 16 groups", header, times),
        Table(
            "Simulated: reward reached per hour (90 % of the final gain), times that of `none`",
            ("search : training", "overlap", *(setting.title for setting in SETTINGS)),
            gains,
            "Exact EM on a chain of 12 states; step: how far an M-step goes towards what fits the samples best.",
        ),
    ]


def _none(rows: Sequence[Row], row: Row) -> Row:
    return next(r for r in rows if r["overlap"] == "none" and r["search:train"] == row["search:train"])


def _gain(row: Row, none: Row, setting: Setting) -> str:
    mine, theirs = (r["seconds_to_90"][setting.title] for r in (row, none))
    return "not reached" if mine is None or theirs is None else f"{theirs / mine:.2f}"


# ---- real ----


def real(out: Path, rounds: int) -> list[Row]:
    """One run per kind of overlap, each in a run directory of its own; what is finished there is not run again."""
    rows = []
    for overlap in OVERLAPS:
        run_dir = out / overlap
        command = [sys.executable, "-m", "dav_ray", "run", "digits", *CUT, f"overlap={overlap}", f"rounds={rounds}"]
        if code := subprocess.run([*command, "--run-dir", str(run_dir)], stdout=sys.stderr).returncode:
            sys.exit(code)  # the run has said why
        rows.append({"overlap": overlap, **measured(run_dir)})
    return rows


def measured(run_dir: Path) -> Row:
    """What a run's metrics say. Round 1 is left out of the times per round: it waits for what Ray starts."""
    metrics = read_metrics(open_storage(str(run_dir)))
    evaluated = [metrics[key] for key in sorted(metrics) if key[1] == "evaluate"]
    first, later = evaluated[0], evaluated[2:]
    seconds = sum(line["time/round_s"] for line in evaluated[1:])
    rise = (evaluated[-1]["evaluate/reward_mean"] - first["evaluate/reward_mean"]) / first["evaluate/reward_std"]
    steps = [metrics[key] for key in sorted(metrics) if key[0] > 1]
    return {
        "rounds": len(evaluated) - 1,
        "round_s": _mean(later, "time/round_s"),
        "estep_s": _mean(steps, "time/estep_s"),
        "mstep_s": _mean(steps, "time/mstep_s"),
        "util_search": _mean(steps, "util/search"),
        "util_train": _mean(steps, "util/train"),
        "busy_search": _mean(later, "busy/search"),
        "busy_train": _mean(later, "busy/train"),
        "seconds": seconds,
        "rise_sd": rise,
        "rise_sd_per_hour": 3600 * rise / seconds,
    }


def _mean(lines: Sequence[dict[str, float]], name: str) -> float:
    values = [line[name] for line in lines if name in line]
    return sum(values) / max(len(values), 1)


def real_table(rows: Sequence[Row]) -> Table:
    header = ("overlap", "seconds per round", "search", "training", "busy: search", "busy: training")
    header += ("util/search", "util/train", "rise in sd", "rise per hour")
    cells = tuple(
        (
            row["overlap"],
            *(f"{row[name]:.1f}" for name in ("round_s", "estep_s", "mstep_s")),
            *(_share(row, "search"), _share(row, "train"), f"{row['util_search']:.0%}", f"{row['util_train']:.0%}"),
            f"{row['rise_sd']:.2f}",
            f"{row['rise_sd_per_hour']:.0f}",
        )
        for row in rows
    )
    note = (
        f"{rows[0]['rounds']} rounds, one search worker, one rank; times are means from round 2 on, busy shares are of "
        "the whole round, evaluation counted as search. Rise: of the unsearched reward over all rounds, in standard "
        "deviations of the pretrained model's samples; per hour of rounds, without the start of Ray."
    )
    return Table("Real: `digits`, cut down", header, cells, note)


def _share(row: Row, role: str) -> str:
    return f"{row[f'busy_{role}']:.0%}"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("runs/overlap"))
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--rounds", type=int, default=4)
    add_page_options(parser)
    words = sys.argv[1:] if words is None else words
    given = parser.parse_args(words)
    if given.stored:
        return PAGE.show_stored(write=given.write_readme)
    torch.set_num_threads(1)
    found: dict[str, list[Row]] = {}
    tables: list[Table] = []
    if "simulated" in given.parts:
        found["simulated"] = simulated()
        tables += simulated_tables(found["simulated"])
        print("\n".join(table.markdown() for table in tables), flush=True)
    if "pools" in given.parts:
        tables.append(pools.table())
        print(tables[-1].markdown(), flush=True)
    if "real" in given.parts:
        found["real"] = real(given.out, given.rounds)
        tables.append(real_table(found["real"]))
        print(tables[-1].markdown(), flush=True)
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if given.write_readme:
        PAGE.publish(tables, words)
    return 0
