"""Another name of `python jobs/performance`."""

from __future__ import annotations

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).with_name("performance")), run_name="__main__")
