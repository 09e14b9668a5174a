"""One run under faults: it is started, brought to a moment, struck, and watched until it has made the loss good."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from jobs.chaos.cluster import Site, kill_tree
from jobs.chaos.plan import Fault
from jobs.chaos.watch import Hit, State, View, told

POLL_S = 0.02
REACH_S = 600.0  # longest wait for a moment to come
BACK_S = 600.0  # longest wait for a loss to be made good
RUN = [sys.executable, "-m", "dav_ray", "run"]


class Missed(Exception):
    """The fault did not meet its phase."""


class Ended(Exception):
    """The driver's process has ended; its exit code."""


@dataclass(frozen=True)
class Lengths:
    """Of the undisturbed run: seconds of training and of an evaluation in a round, chunks, files of a policy."""

    training: float
    evaluation: float
    chunks: int
    files: int
    rounds: int


@dataclass
class Run:
    site: Site
    run_dir: Path
    recipe: Path
    holds: Path
    words: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    view: View = field(init=False)

    def __post_init__(self) -> None:
        self.view = View(self.run_dir)

    @property
    def log(self) -> Path:
        return self.run_dir.with_suffix(".log")

    def start(self) -> None:
        """The user's command; the same each time."""
        command = [*RUN, str(self.recipe), *self.words, "--run-dir", str(self.run_dir), "--address", self.site.address]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.recipe.parent, env=dict(self.site.env), stdout=log, stderr=subprocess.STDOUT
            )

    def code(self) -> int | None:
        return None if self.process is None else self.process.poll()

    def last_words(self) -> str:
        words = self.log.read_text(errors="replace").strip().splitlines()
        return words[-1] if words else ""

    def kill(self) -> None:
        if self.process is not None:
            kill_tree(self.process.pid)
            self.process.wait()

    def wait(self, timeout_s: float) -> int:
        assert self.process is not None
        return self.process.wait(timeout_s)


def reach(run: Run, fault: Fault, round: int, lengths: Lengths) -> int | None:
    """Come to the fault's moment in that round: the process that is held there, or None where nothing is held."""
    moment, first = fault.moment, int(fault.share * (lengths.chunks - 1))
    phases = {"search": "search", "commit": "search", "training": "fit", "publish": "fit", "report": "evaluate"}
    phase = phases.get(fault.phase, "")
    _until(run, round, phase, first if phase == "search" else 0)
    if not moment.step:
        # the phase may be shorter than it was in the undisturbed run
        length = {"search": 0.5, "training": 0.6 * lengths.training, "report": 0.6 * lengths.evaluation}[fault.phase]
        time.sleep((fault.pick if fault.phase == "search" else fault.share) * length)
        _still(run, fault, round, lengths)
        return None
    skip = int(fault.share * lengths.files) if fault.phase == "checkpoint" else 0
    hold = {
        "number": f"{fault.number}-{fault.attempt}",
        "run_dir": str(run.run_dir),
        "pattern": moment.pattern.format(round=round),
        "step": moment.step,
        "skip": skip,
    }
    aside = run.holds / "hold.json.new"
    aside.write_text(json.dumps(hold))
    os.replace(aside, run.holds / "hold.json")
    try:
        return _beacon(run, fault, round, run.holds / f"{hold['number']}.beacon")
    finally:
        (run.holds / "hold.json").unlink()


def release(run: Run, fault: Fault) -> None:
    """Whoever is held goes on."""
    (run.holds / f"{fault.number}-{fault.attempt}.go").touch()


def _until(run: Run, round: int, phase: str, committed: int) -> None:
    deadline = time.monotonic() + REACH_S
    while True:
        state = run.view.state()
        if state.round > round or (state.phase == "done"):
            raise Missed(f"the run is in round {state.round} ({state.phase}) already")
        if state.round == round and phase in ("", state.phase) and state.committed >= committed:
            return
        _alive(run)
        if time.monotonic() > deadline:
            raise Missed(f"round {round} {phase} did not come in {REACH_S:.0f} s; the run is at {state}")
        time.sleep(POLL_S)


def _still(run: Run, fault: Fault, round: int, lengths: Lengths) -> None:
    state, where = run.view.state(), run.run_dir
    there = {
        "search": state.phase == "search" and state.committed < lengths.chunks,
        "training": state.phase == "fit" and not run.view.has_policy(round),
        "report": state.phase == "evaluate" and not (where / f"evaluate/round-{round:04d}.parquet").exists(),
    }[fault.phase]
    if state.round != round or not there:
        raise Missed(f"the run is past it: {state}")


def _beacon(run: Run, fault: Fault, round: int, beacon: Path) -> int:
    deadline = time.monotonic() + REACH_S
    while not beacon.exists():
        state = run.view.state()
        if state.round > round + 1 or (state.phase == "done" and not fault.moment.last):
            raise Missed(f"nobody came by; the run is at {state}")
        _alive(run)
        if time.monotonic() > deadline:
            raise Missed(f"nobody came by in {REACH_S:.0f} s")
        time.sleep(POLL_S)
    if not _right(run.view.state(), fault, round):
        release(run, fault)
        raise Missed(f"it was another write: {run.view.state()}")
    return json.loads(beacon.read_text())["pid"]


def _right(state: State, fault: Fault, round: int) -> bool:
    """Whether the write that was met is the one of this phase: by what the manifest says meanwhile."""
    done = fault.moment.step == "after"
    if fault.phase == "checkpoint" or fault.moment.last:
        return state.round >= round
    if fault.phase == "commit":
        return (state.round, state.phase) == (round, "search")
    if fault.phase == "publish":
        return (state.round, state.phase) == (round, "evaluate" if done else "fit")
    closed = done and fault.moment.name.startswith("next round")
    return (state.round, state.phase) == ((round + 1, "search") if closed else (round, "evaluate"))


def strike(run: Run, fault: Fault, held: int | None, replicas: Mapping[str, int]) -> tuple[Hit, str]:
    """Kill the victim, and start what a cluster's owner or a user would start again. What was hit, in words."""
    state, cluster = run.view.state(), run.view.cluster()
    site, gone = run.site, dict[str, int]()
    if fault.role == "node":
        nodes = [node for node in site.nodes if any(site.on(node, role) for role in replicas)]
        holder = [n for n in nodes if held is not None and any(p.pid == held for r in replicas for p in site.on(n, r))]
        choice = holder or nodes
        if not choice:
            raise Missed("no node that works holds anything")
        node = choice[int(fault.pick * len(choice))]
        gone = {role: len(site.on(node, role)) for role in replicas}
        gone["train"] = replicas["train"] if gone["train"] else 0  # ranks are started again together
        words, at = f"node with {gone}", time.time()
        site.kill_node(node)
    elif fault.role == "driver":
        words, at = "driver", time.time()
        run.kill()
    elif fault.role == "head":
        words, at = "head, nodes and driver", time.time()
        run.kill()
        site.kill()
    else:
        victim = _victim(run, fault, held)
        words, at = f"{fault.role} worker, pid {victim.pid}", time.time()
        victim.kill()
    release(run, fault)
    if fault.role == "node":
        site.add_node()
    if fault.role == "head":
        site.start()
    if fault.role in ("driver", "head"):
        run.start()
    return Hit(fault.role, at, state.epoch, cluster, gone), words


def _victim(run: Run, fault: Fault, held: int | None) -> psutil.Process:
    found = run.site.workers(fault.role)
    mine = [process for process in found if process.pid == held]
    choice = mine or found
    if not choice:
        raise Missed(f"no {fault.role} worker is there")
    return choice[int(fault.pick * len(choice))]


def made_good(run: Run, hit: Hit) -> dict[str, Any]:
    """Wait until the events tell of the fault and of its end: what they tell, for the table's row."""
    deadline, note = time.monotonic() + BACK_S, ""
    while True:
        code = run.code()
        found = told(hit, run.view.events(), done=code == 0)
        if code not in (None, 0):
            note = f"the run ended with {code}: {run.last_words()}"
        if found.back is not None or code is not None or time.monotonic() > deadline:
            break
        time.sleep(10 * POLL_S)
    if found.back is None and not note:
        note = "the run is over" if code == 0 else f"not made good in {BACK_S:.0f} s"
    return {
        "witness": found.witness,
        "witness_s": None if found.at is None else round(found.at - hit.at, 2),
        "recovery_s": None if found.back is None else round(found.back - hit.at, 2),
        "counted": found.at is not None and found.back is not None and not note,
        "note": note,
    }


def _alive(run: Run) -> None:
    if run.code() is not None:
        raise Ended(run.code())


@contextlib.contextmanager
def ended(run: Run) -> Any:
    """Nothing of the run is left afterwards."""
    try:
        yield
    finally:
        run.kill()
