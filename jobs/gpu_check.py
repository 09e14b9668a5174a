"""Another name of `python jobs/gpu_check`."""

from __future__ import annotations

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).with_name("gpu_check")), run_name="__main__")
