"""What was measured so far: a JSON file, written after every case, from which a study that is cut off goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Result = dict[str, Any]


class Record:
    """steps -> cases -> results. A case that was begun and has no result ended its process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"machine": {}, "steps": {}}

    @property
    def machine(self) -> dict[str, Any]:
        return self._found["machine"]

    def cases(self, step: str) -> Mapping[str, Result]:
        return self._found["steps"].get(step, {})

    def results(self, step: str) -> Iterator[tuple[str, Result]]:
        """Those that are measurements."""
        return ((case, each) for case, each in self.cases(step).items() if not {"begun", "error"} & each.keys())

    def about(self, machine: Mapping[str, Any]) -> None:
        self._found["machine"] = dict(machine)
        self._write()

    def begin(self, step: str, case: str) -> None:
        self.put(step, case, {"begun": True})

    def put(self, step: str, case: str, result: Result) -> None:
        self._found["steps"].setdefault(step, {})[case] = result
        self._write()

    def forget(self, step: str) -> None:
        self._found["steps"].pop(step, None)
        self._write()

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(self._found, indent=1) + "\n")
        new.replace(self._path)
