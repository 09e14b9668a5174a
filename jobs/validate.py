"""Another name of `python jobs/validation`."""

from __future__ import annotations

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).with_name("validation")), run_name="__main__")
