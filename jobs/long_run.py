"""Another name of `python jobs/endurance`."""

from __future__ import annotations

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).with_name("endurance")), run_name="__main__")
