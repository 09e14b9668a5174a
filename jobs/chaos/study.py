"""The promise, tested: whatever is killed, whenever, the same command ends in the same bytes.

    python jobs/chaos --out DIR [--faults 100] [--seed 0] [--domains masked,images] [--only DOMAIN] [--lane I/N]
                      [--write-readme] [--stored]

Runs of two tiny domains on a cluster of three nodes on this machine. In round after round somebody is killed with
SIGKILL (a search worker, a reward worker, a rank, a node, the driver, the head with everything) at a drawn moment of a
drawn phase; a fault counts if the run's events tell of it and of its end. Each run is compared with an undisturbed
one. DIR holds the runs, `faults.jsonl` and `table.md`; the same command goes on where it stopped. Exit code 1: a run
differs, or ended. `--write-readme` writes the table of DIR into the page beside this file, `--stored` prints the table
of the page and starts nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from jobs.chaos.cluster import Site
from jobs.chaos.compare import differences
from jobs.chaos.plan import Fault, again, draw
from jobs.chaos.recipes import DOMAINS, ROLES, write_recipe
from jobs.chaos.run import Ended, Lengths, Missed, Run, ended, made_good, reach, release, strike
from jobs.chaos.table import summary, write_table
from jobs.chaos.watch import lines
from jobs.tables import Page, add_page_options

OVERLAPS = ("none", "stream")  # in turn: both give the bytes of `none`
END_S = 1800.0  # longest wait for a run's end
TRIES = 3  # a run that ended with an error is started again so often
PAGE = Page(Path(__file__).parent)
Row = dict[str, Any]


class Chaos:
    def __init__(self, out: Path, seed: int, rounds: int, plan: Sequence[Fault]) -> None:
        self.out, self.seed, self.rounds = out, seed, rounds
        self.holds = out / f"holds-{os.getpid()}"
        self.holds.mkdir(parents=True)
        self.site = Site(self.holds)
        self.rows: list[Row] = lines(out / "faults.jsonl")
        done = {row["number"] for row in self.rows if row["counted"]}
        tried = {row["number"]: row["attempt"] for row in self.rows}
        left = [fault for fault in plan if fault.number not in done]
        self.left = [self._once_more(fault, tried[fault.number]) if fault.number in tried else fault for fault in left]

    def _once_more(self, fault: Fault, attempt: int) -> Fault:
        for _ in range(fault.attempt, attempt + 1):
            fault = again(fault, self.seed)
        return fault

    def reference(self, domain: str) -> Lengths:
        """The undisturbed run, which is made if it is not there."""
        run = self._run(f"reference-{domain}", domain, "none")
        if run.view.state().phase != "done":
            self.say(f"{run.run_dir.name}: the undisturbed run")
            with ended(run):
                run.start()
                if run.wait(END_S) != 0:
                    sys.exit(f"{run.run_dir.name}: {run.last_words()}")
        metrics = lines(run.run_dir / "metrics.jsonl")
        times = {key: mean(line[key] for line in metrics if key in line) for key in ("time/mstep_s", "time/evaluate_s")}
        named = json.loads((run.run_dir / "manifests/round-0001.json").read_text())["shards"]
        files = len(list((run.run_dir / "policy/v0001").iterdir()))
        return Lengths(times["time/mstep_s"], times["time/evaluate_s"], len(named), files, self.rounds)

    def go(self, domain: str, lengths: Lengths, lane: int = 0, lanes: int = 1) -> None:
        """Runs of the domain until each of its faults (of this lane) has counted."""
        left = deque(fault for fault in self.left if fault.domain == domain and fault.number % lanes == lane)
        for number in range(lane or lanes, 1000, lanes):
            name = f"{domain}-{number:02d}"
            if any(row["run"] == name for row in lines(self.out / "runs.jsonl")):
                continue
            if not left:
                return
            self._one(self._run(name, domain, OVERLAPS[number % len(OVERLAPS)]), left, lengths)

    def _one(self, run: Run, left: deque[Fault], lengths: Lengths) -> None:
        """A run with as many faults as it has rounds for."""
        self.say(f"{run.run_dir.name}: {' '.join(run.words)}, {len(left)} faults are left")
        with ended(run):
            run.start()
            while left and self._next_round(run) < self.rounds:
                self._fault(run, _take(left, last=False), left, lengths)
            if any(fault.moment.last for fault in left):
                self._fault(run, _take(left, last=True), left, lengths)
            codes = self._to_the_end(run)
        found = [f"ended with {code}" for code in codes if code != 0]
        found += differences(run.run_dir, self.out / f"reference-{run.recipe.stem}")
        faults = [row["number"] for row in self.rows if row["run"] == run.run_dir.name and row["counted"]]
        record = {"run": run.run_dir.name, "words": run.words, "faults": faults, "differences": found}
        _append(self.out / "runs.jsonl", record)
        self.say(f"{run.run_dir.name}: {'; '.join(found) if found else 'the same'} ({len(faults)} faults)")
        write_table(self.out)

    def _fault(self, run: Run, fault: Fault, left: deque[Fault], lengths: Lengths) -> None:
        number = self.rounds if fault.moment.last else self._next_round(run)
        row: Row = {"number": fault.number, "attempt": fault.attempt, "domain": fault.domain, "role": fault.role}
        row |= {"phase": fault.phase, "moment": fault.moment.name, "run": run.run_dir.name, "round": number}
        try:
            held = reach(run, fault, number, lengths)
            if fault.moment.after:
                release(run, fault)
                time.sleep(0.3 * fault.pick)
            hit, victim = strike(run, fault, held, {role: ROLES[role]["replicas"] for role in ROLES})
            row |= {"victim": victim, "at": round(hit.at, 3), **made_good(run, hit)}
        except Missed as missed:
            release(run, fault)
            row |= {"counted": False, "note": f"missed: {missed}"}
        except Ended as code:
            row |= {"counted": False, "note": f"the run had ended with {code}: {run.last_words()}"}
        self.rows.append(row)
        _append(self.out / "faults.jsonl", row)
        if not row["counted"]:
            left.append(again(fault, self.seed))
        self.say(" ".join(f"{key}={row[key]}" for key in row if key not in ("at", "domain", "attempt")))
        write_table(self.out)
        if run.code() not in (None, 0):
            self.say(f"{run.run_dir.name}: ended with {run.code()}: {run.last_words()}")
            _append(self.out / "ends.jsonl", {"run": run.run_dir.name, "code": run.code(), "words": run.last_words()})
            run.start()

    def _next_round(self, run: Run) -> int:
        """The next one that is whole before us."""
        state = run.view.state()
        if state.phase == "done" or run.code() == 0:
            return self.rounds + 1
        return max(1, state.round if state.phase == "search" and not state.committed else state.round + 1)

    def _to_the_end(self, run: Run) -> list[int]:
        """Exit codes other than 0 on the way, then 0."""
        name, codes = run.run_dir.name, []
        codes += [end["code"] for end in lines(self.out / "ends.jsonl") if end["run"] == name]
        for _ in range(TRIES):
            try:
                codes.append(run.wait(END_S))
            except subprocess.TimeoutExpired:
                self.say(f"{name}: no end in {END_S:.0f} s")
                return [*codes, -1]
            if codes[-1] == 0:
                break
            self.say(f"{name}: ended with {codes[-1]}: {run.last_words()}")
            run.start()
        return codes

    def _run(self, name: str, domain: str, overlap: str) -> Run:
        recipe = write_recipe(domain, self.out, self.rounds)
        return Run(self.site, self.out / name, recipe, self.holds, (f"overlap={overlap}",))

    def say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _take(left: deque[Fault], *, last: bool) -> Fault:
    """The next fault; `last`: one that strikes at the end of a run, else one that does not, if there is any."""
    fault = next((one for one in left if one.moment.last == last), left[0])
    left.remove(fault)
    return fault


def _append(file: Path, record: Row) -> None:
    with open(file, "a") as out:
        out.write(json.dumps(record) + "\n")


def main(words: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    given = arguments(words)
    if given.stored:
        return PAGE.show_stored(write=given.write_readme)
    domains = given.domains.split(",")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    plan = draw(given.faults, given.seed, domains)
    chaos = Chaos(given.out.resolve(), given.seed, given.rounds, plan)
    try:
        chaos.site.start()
        for domain in [given.only] if given.only else domains:
            chaos.go(domain, chaos.reference(domain), *map(int, given.lane.split("/")))
    finally:
        chaos.site.end()
        for file in chaos.holds.iterdir():
            file.unlink()
        chaos.holds.rmdir()
    if given.write_readme:
        PAGE.publish([summary(lines(chaos.out / "faults.jsonl"), lines(chaos.out / "runs.jsonl"))], words)
    return write_table(chaos.out)


def arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a folder; needed where something is started")
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=14, help="of each run")
    parser.add_argument("--domains", default=",".join(DOMAINS))
    parser.add_argument("--only", help="the faults of one domain, beside another process that does the other's")
    parser.add_argument("--lane", default="0/1", help="I/N: an N-th of them, beside other processes that do the others")
    add_page_options(parser)
    given = parser.parse_args(words)
    if given.out is None and not given.stored:
        parser.error("--out: is missing; allowed: a folder")
    return given
