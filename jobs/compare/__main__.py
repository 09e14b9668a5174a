"""`python jobs/compare NAME ...`: compares what NAME says, one of those below; `--help` after it has the rest."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

DIGITS = ("digits", "digits_flow", "digits_turbo")  # one program, several recipes
NAMES = (*DIGITS, "dna", "ehrlich")

sys.path[0] = str(Path(__file__).resolve().parents[2])  # in place of this folder: its modules are jobs.compare.*
if sys.argv[1:2] and sys.argv[1] in DIGITS:
    sys.exit(importlib.import_module("jobs.compare.digits").main(sys.argv[2:], sys.argv[1]))
if sys.argv[1:2] and sys.argv[1] in NAMES:
    sys.exit(importlib.import_module(f"jobs.compare.{sys.argv[1]}").main(sys.argv[2:]))
print(f"jobs/compare: {' '.join(sys.argv[1:2]) or 'no word'}; allowed: {', '.join(NAMES)}", file=sys.stderr)
sys.exit(2)
