"""Another name of `python jobs/compare dna`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

sys.argv.insert(1, "dna")
runpy.run_path(str(Path(__file__).with_name("compare")), run_name="__main__")
