"""Another name of `python jobs/compare ehrlich`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

sys.argv.insert(1, "ehrlich")
runpy.run_path(str(Path(__file__).with_name("compare")), run_name="__main__")
