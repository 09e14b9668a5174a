"""Which process an actor lives in: Ray starts another one where it dies, and an actor that was idle dies unseen."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

COUNTERS = Path("/proc/vmstat")


@dataclass(frozen=True)
class Life:
    """node, worker: Ray's ids, of the worker's process; memory_kills: how many processes of its node the kernel has
    ended for want of memory, when this was told."""

    id: str
    node: str
    pid: int
    worker: str
    memory_kills: int = 0

    @classmethod
    def begin(cls, node: str, worker: str) -> Life:
        return cls(uuid.uuid4().hex, node, os.getpid(), worker, memory_kills())

    def now(self) -> Life:
        return replace(self, memory_kills=memory_kills())


@dataclass(frozen=True)
class Answer:
    """What a search worker says beside its table. halvings: how often its networks' batches were halved, for want of
    memory; events: (name, fields) of what happened meanwhile."""

    meta: Any
    life: Life
    halvings: int = 0
    events: tuple[tuple[str, dict[str, Any]], ...] = ()


def memory_kills() -> int:
    """0 where the kernel does not tell."""
    try:
        counters = COUNTERS.read_text().split("\n")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in counters if line.startswith("oom_kill ")), 0)
