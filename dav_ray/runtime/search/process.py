"""Which process an actor has: Ray starts another one where it dies, and the death of an idle actor is not seen."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

COUNTERS = Path("/proc/vmstat")


@dataclass(frozen=True)
class Process:
    """id: our own, another one for each process; node, worker: Ray's ids; memory_kills: how many processes of its node
    the kernel had ended for want of memory when this was made."""

    id: str
    node: str
    pid: int
    worker: str
    memory_kills: int = 0

    @classmethod
    def begin(cls, node: str, worker: str) -> Process:
        return cls(uuid.uuid4().hex, node, os.getpid(), worker, memory_kills())

    def now(self) -> Process:
        return replace(self, memory_kills=memory_kills())


@dataclass(frozen=True)
class Reply:
    """What a search worker returns beside its table. result: a `SearchedChunk`, or the seconds of an evaluation;
    halvings: how often all batches of its networks were halved, for want of memory outside of them; events: (name,
    fields) of what happened meanwhile; computed_s: seconds of it in which the worker computed for it."""

    result: Any
    process: Process
    halvings: int = 0
    events: tuple[tuple[str, dict[str, Any]], ...] = ()
    computed_s: float = 0.0


def memory_kills() -> int:
    """0 where the kernel does not tell."""
    try:
        counters = COUNTERS.read_text().split("\n")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in counters if line.startswith("oom_kill ")), 0)
