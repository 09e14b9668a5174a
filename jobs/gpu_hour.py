"""Another name of `python jobs/gpu_hour`."""

from __future__ import annotations

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).with_name("gpu_hour")), run_name="__main__")
