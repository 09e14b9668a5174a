"""`python jobs/assets NAME ...`: makes what NAME says, one of those below; `--help` after it has the rest."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

NAMES = ("digits", "digits_flow", "digits_turbo", "dna", "ehrlich")

sys.path[0] = str(Path(__file__).resolve().parents[2])  # in place of this folder: its modules are jobs.assets.*
if sys.argv[1:2] and sys.argv[1] in NAMES:
    sys.exit(importlib.import_module(f"jobs.assets.{sys.argv[1]}").main(sys.argv[2:]))
print(f"jobs/assets: {' '.join(sys.argv[1:2]) or 'no word'}; allowed: {', '.join(NAMES)}", file=sys.stderr)
sys.exit(2)
