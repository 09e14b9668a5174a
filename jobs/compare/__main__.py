"""`python jobs/compare digits|dna|ehrlich ...`: compares what the first word names; `--help` after it has the rest."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

NAMES = ("digits", "dna", "ehrlich")

sys.path[0] = str(Path(__file__).resolve().parents[2])  # in place of this folder: its modules are jobs.compare.*
if sys.argv[1:2] and sys.argv[1] in NAMES:
    sys.exit(importlib.import_module(f"jobs.compare.{sys.argv[1]}").main(sys.argv[2:]))
print(f"jobs/compare: {' '.join(sys.argv[1:2]) or 'no word'}; allowed: {', '.join(NAMES)}", file=sys.stderr)
sys.exit(2)
