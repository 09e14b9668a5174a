"""What a step is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from jobs.gpu_hour.record import Result
from jobs.gpu_hour.setting import Setting
from jobs.tables import Table

Measure = Callable[[str], Result]  # of a case


@dataclass(frozen=True)
class Step:
    """cases: by name, what matters most first; open: a context that gives what measures one of them; table: of what was
    measured, by case."""

    name: str
    cases: Callable[[Setting], Sequence[str]]
    open: Callable[[Setting], AbstractContextManager[Measure]]
    table: Callable[[Mapping[str, Result]], Table]


def cells(result: Result, *keys: str, digits: int = 3) -> tuple[str, ...]:
    """Numbers as they are shown; what kept the case from being measured stands in the first one."""
    if why := trouble(result):
        return why, *("",) * (len(keys) - 1)
    return tuple(_shown(result.get(key), digits) for key in keys)


def trouble(result: Result) -> str:
    if result.get("out_of_memory"):
        return "out of memory"
    return "ended its process" if "begun" in result else str(result.get("error", ""))[:80]


def _shown(value: object, digits: int) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.{digits}g}" if isinstance(value, float) else "" if value is None else str(value)
