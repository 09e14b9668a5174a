"""The faults of a chaos run as tables: by role and phase, seconds until they were made good, each fault, each run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from chaos_plan import PHASES, ROLES
from chaos_watch import lines


def write_table(out: Path) -> int:
    """`table.md` from faults.jsonl and runs.jsonl. 1 if a run differs from the undisturbed one, or ended; else 0."""
    rows, runs = lines(out / "faults.jsonl"), lines(out / "runs.jsonl")
    counted = [row for row in rows if row["counted"]]
    same = sum(not run["differences"] for run in runs)
    text = [
        f"{len(counted)} faults counted, {len(rows) - len(counted)} did not. {same} of {len(runs)} runs are the same.",
        *_cells(counted),
        *_seconds(counted),
        *_each(rows),
        *_runs(runs),
    ]
    (out / "table.md").write_text("\n".join(text) + "\n")
    return int(same < len(runs))


def _cells(counted: list[dict[str, Any]]) -> list[str]:
    number = Counter((row["role"], row["phase"]) for row in counted)
    lines_ = [[role, *(str(number[role, phase]) for phase in PHASES)] for role in ROLES]
    return _table(["killed", *PHASES], lines_)


def _seconds(counted: list[dict[str, Any]]) -> list[str]:
    found = []
    for role in ROLES:
        times = [row["recovery_s"] for row in counted if row["role"] == role]
        if times:
            found.append([role, str(len(times)), f"{median(times):.1f}", f"{max(times):.1f}"])
    return _table(["killed", "faults", "made good after s, median", "most"], found)


def _each(rows: list[dict[str, Any]]) -> list[str]:
    keys = ["number", "domain", "run", "round", "role", "phase", "moment", "victim", "witness", "witness_s"]
    keys += ["recovery_s", "counted", "note"]
    return _table(keys, [[str(row.get(key, "")) for key in keys] for row in rows])


def _runs(runs: list[dict[str, Any]]) -> list[str]:
    found = [
        [run["run"], " ".join(run["words"]), str(len(run["faults"])), "; ".join(run["differences"]) or "none"]
        for run in runs
    ]
    return _table(["run", "words", "faults", "differences"], found)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["", *(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])]
