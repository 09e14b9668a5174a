"""`python jobs/families`: see `study.py`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])  # in place of this folder: its modules are jobs.families.*

from jobs.families.study import main  # noqa: E402

sys.exit(main())
