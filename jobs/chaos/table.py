"""The faults of a chaos run as tables: by role and phase, seconds until they were made good, each fault, each run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from jobs.chaos.plan import PHASES, ROLES
from jobs.chaos.watch import lines
from jobs.tables import Table

Rows = list[dict[str, Any]]
KILLED = {
    "search": "search worker",
    "reward": "reward worker",
    "train": "rank",
    "head": "head, nodes and driver",
}


def write_table(out: Path) -> int:
    """`table.md` from faults.jsonl and runs.jsonl. 1 if a run differs from the undisturbed one, or ended; else 0."""
    rows, runs = lines(out / "faults.jsonl"), lines(out / "runs.jsonl")
    uncounted = sum(not row["counted"] for row in rows)
    tables = [summary(rows, runs), _seconds(rows), _each(rows), _runs(runs)]
    text = [f"{uncounted} faults did not count.\n", *(table.markdown() for table in tables)]
    (out / "table.md").write_text("\n".join(text), encoding="utf-8")
    return int(any(run["differences"] for run in runs))


def summary(rows: Rows, runs: Rows) -> Table:
    """How often whom, when; and what came of it. rows: faults; runs: what they were compared with."""
    counted = [row for row in rows if row["counted"]]
    number = Counter((row["role"], row["phase"]) for row in counted)
    same = sum(not run["differences"] for run in runs)
    cells = {role: tuple(str(number[role, phase]) for phase in PHASES) for role in ROLES}
    return Table(
        "Faults counted",
        ("killed", *PHASES, "made good after, median"),
        tuple((KILLED.get(role, role), *cells[role], _median(counted, role)) for role in ROLES),
        f"{len(counted)} faults; {same} of {len(runs)} runs are the same as the undisturbed one.",
    )


def _median(counted: Rows, role: str) -> str:
    times = [row["recovery_s"] for row in counted if row["role"] == role]
    return f"{median(times):.0f} s" if times else ""


def _seconds(rows: Rows) -> Table:
    found = []
    for role in ROLES:
        times = [row["recovery_s"] for row in rows if row["counted"] and row["role"] == role]
        if times:
            found.append((role, str(len(times)), f"{median(times):.1f}", f"{max(times):.1f}"))
    return Table("Seconds until made good", ("killed", "faults", "median", "most"), tuple(found))


def _each(rows: Rows) -> Table:
    keys = ("number", "domain", "run", "round", "role", "phase", "moment", "victim", "witness", "witness_s")
    keys += ("recovery_s", "counted", "note")
    return Table("Each fault", keys, tuple(tuple(str(row.get(key, "")) for key in keys) for row in rows))


def _runs(runs: Rows) -> Table:
    found = tuple(
        (run["run"], " ".join(run["words"]), str(len(run["faults"])), "; ".join(run["differences"]) or "none")
        for run in runs
    )
    return Table("Each run", ("run", "words", "faults", "differences"), found)
