"""Which faults a chaos run is made of, drawn from a seed: who is killed, in which phase, at which moment of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

ROLES = ("search", "reward", "train", "node", "driver", "head")
PHASES = ("search", "commit", "training", "checkpoint", "publish", "report")
OFTEN = ("search", "reward", "train", "node")  # faults beyond two for each role and phase
STEPS = ("before", "between", "after")
MANIFEST, METRICS = r"manifest\.json", r"metrics\.jsonl"


@dataclass(frozen=True)
class Moment:
    """A step of writing a file whose path matches (`{round}` filled in), or a point in time where there is none."""

    name: str
    pattern: str = ""
    step: str = ""
    after: bool = False  # the process goes on before the fault: what it has just said is being acted upon
    last: bool = False  # once in a run, at its end


@dataclass(frozen=True)
class Fault:
    """share, pick: in [0, 1): how far into the phase, which of several victims."""

    number: int
    attempt: int
    domain: str
    role: str
    phase: str
    moment: Moment
    share: float
    pick: float


def moments(phase: str, role: str) -> tuple[Moment, ...]:
    """The moments of a phase at which this role can be killed."""
    whole = role in ("driver", "head")
    if phase == "search":
        return (Moment("searching"),)
    if phase == "commit":
        return _write("manifest", MANIFEST)
    if phase == "training":
        return (Moment("training"),)
    if phase == "checkpoint":
        return _write("policy", r"policy/v{round:04d}/.+")
    if phase == "publish":
        told = Moment("handed in", METRICS, "before")
        loading = () if whole else (Moment("loading", MANIFEST, "after", after=True),)
        return (told, *_write("manifest", MANIFEST), *loading)
    found = (
        Moment("evaluating"),
        Moment("metrics", METRICS, "before"),
        *_write("evaluation", r"evaluate/round-{round:04d}\.parquet"),
        *_write("round manifest", r"manifests/round-{round:04d}\.json"),
        *_write("next round", MANIFEST),
    )
    # at the very end the actors are gone already
    return (*found, *_write("report", r"report\.html", last=True)) if whole else found


def draw(total: int, seed: int, domains: Sequence[str]) -> list[Fault]:
    """At least `total` faults: each role and phase twice, in turn over the domains, others where it is cheap."""
    order = random.Random(f"chaos {seed}")
    cells = [(role, phase) for role in ROLES for phase in PHASES]
    often = [cell for cell in cells if cell[0] in OFTEN]
    order.shuffle(often)
    found = [(cell, domains[i % len(domains)]) for i in range(2) for cell in cells]
    while len(found) < total:
        cell = often[len(found) % len(often)]
        found.append((cell, domains[len(found) % len(domains)]))
    order.shuffle(found)
    return [aim(number, 0, seed, domain, *cell) for number, (cell, domain) in enumerate(found, 1)]


def aim(number: int, attempt: int, seed: int, domain: str, role: str, phase: str) -> Fault:
    """The details of a fault; another attempt has others."""
    dice = random.Random(f"chaos {seed} {number} {attempt}")
    moment = dice.choice(moments(phase, role))
    return Fault(number, attempt, domain, role, phase, moment, dice.random(), dice.random())


def again(fault: Fault, seed: int) -> Fault:
    """The same fault at another moment, after it missed its phase."""
    return aim(fault.number, fault.attempt + 1, seed, fault.domain, fault.role, fault.phase)


def _write(name: str, pattern: str, *, last: bool = False) -> tuple[Moment, ...]:
    return tuple(Moment(f"{name}, {step}", pattern, step, last=last) for step in STEPS)
